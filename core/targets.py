"""Which modules an adapter is put on. Plain Python, shared by injection, estimate and the form."""

import re
from collections.abc import Sequence

from core.config import LoraConfig
from core.errors import AdapterError
from core.events import ModuleInfo

ATTENTION_KINDS = frozenset({
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "dense", "c_attn", "qkv_proj",
    "query_key_value", "query", "key", "value", "Wqkv",
})
QUERY_VALUE_KINDS = frozenset({
    # a fused projection holds the query and the value (and the key), so it stands for both
    "q_proj", "v_proj", "query", "value", "c_attn", "qkv_proj", "query_key_value", "Wqkv",
})
ADAPTABLE = ("Linear", "Conv1D")


def select_targets(modules: Sequence[ModuleInfo], adapter: LoraConfig) -> list[ModuleInfo]:
    """The modules that `adapter.target_modules` and its layer range choose, in the model's order.

    Raises:
        AdapterError: nothing matches, or a name of the list matches nothing.
    """
    able = [module for module in modules if module.type in ADAPTABLE]
    chosen = [module for module in _by_name(able, adapter.target_modules) if _in_range(module, adapter)]
    if not chosen:
        raise AdapterError("The target layers match no module of this model.", _hint(able, adapter.target_modules))
    return chosen


def _hint(able: list[ModuleInfo], target: str | tuple[str, ...]) -> str:
    kinds = sorted({module.kind for module in able})
    if isinstance(target, str) and target in kinds:
        return f'A single text is a preset or a regular expression of whole names; write ["{target}"] for this kind.'
    return f"It has: {', '.join(kinds)}."


def _by_name(able: list[ModuleInfo], target: str | tuple[str, ...]) -> list[ModuleInfo]:
    if isinstance(target, tuple):
        for name in target:
            if not any(matches_suffix(module.name, name) for module in able):
                raise AdapterError(f"The target layer {name!r} matches no module of this model.", _hint(able, target))
        return [module for module in able if any(matches_suffix(module.name, name) for name in target)]
    if target == "all-linear":
        return [module for module in able if not module.is_output_head]
    if target == "attention":
        return [module for module in able if _is_attention(module)]
    if target == "q-v":
        return [module for module in able if module.kind in QUERY_VALUE_KINDS and module.layer >= 0]
    pattern = re.compile(target)
    return [module for module in able if pattern.fullmatch(module.name)]


def matches_suffix(name: str, target: str) -> bool:
    """PEFT's rule for names of a list: the exact name, or a suffix after a dot."""
    return name == target or name.endswith(f".{target}")


def _is_attention(module: ModuleInfo) -> bool:
    if module.layer < 0 or "mlp" in module.name.lower():
        return False
    if module.kind == "c_proj":  # GPT-2 names the output of attention and of the MLP alike
        return ".attn." in module.name
    return module.kind in ATTENTION_KINDS


def _in_range(module: ModuleInfo, adapter: LoraConfig) -> bool:
    if adapter.first_layer == 0 and adapter.last_layer is None:
        return True
    last = module.layer if adapter.last_layer is None else adapter.last_layer
    return module.layer >= 0 and adapter.first_layer <= module.layer <= last
