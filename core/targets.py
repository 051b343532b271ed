"""Which modules an adapter is put on. Plain Python, shared by injection, estimate and the form."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from core.config import LowRankConfig, PatternedConfig, TargetConfig
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

Number = TypeVar("Number", int, float)


def select_targets(modules: Sequence[ModuleInfo], adapter: TargetConfig) -> list[ModuleInfo]:
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


def rank_of(name: str, adapter: LowRankConfig) -> int:
    """The rank r of the module called `name`."""
    return pattern_value(adapter.rank_pattern, name, adapter.rank) if isinstance(adapter, PatternedConfig) \
        else adapter.rank


def alpha_of(name: str, adapter: LowRankConfig) -> float:
    """The alpha of the module called `name`."""
    return pattern_value(adapter.alpha_pattern, name, adapter.alpha) if isinstance(adapter, PatternedConfig) \
        else adapter.alpha


def scale_of(name: str, adapter: LowRankConfig) -> float:
    """The factor of B A: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
    rank = rank_of(name, adapter)
    stabilised = isinstance(adapter, PatternedConfig) and adapter.rslora
    return alpha_of(name, adapter) / (math.sqrt(rank) if stabilised else rank)


def pattern_value(pattern: Mapping[str, Number], name: str, default: Number) -> Number:
    """PEFT's rule for `rank_pattern` and `alpha_pattern`: the first key that matches the end of the name wins."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


def _is_attention(module: ModuleInfo) -> bool:
    if module.layer < 0 or "mlp" in module.name.lower():
        return False
    if module.kind == "c_proj":  # GPT-2 names the output of attention and of the MLP alike
        return ".attn." in module.name
    return module.kind in ATTENTION_KINDS


def _in_range(module: ModuleInfo, adapter: TargetConfig) -> bool:
    if adapter.first_layer == 0 and adapter.last_layer is None:
        return True
    last = module.layer if adapter.last_layer is None else adapter.last_layer
    return module.layer >= 0 and adapter.first_layer <= module.layer <= last
