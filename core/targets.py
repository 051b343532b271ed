"""Which modules an adapter is put on. Plain Python, shared by injection, estimate and the form."""

import math
from collections.abc import Sequence

from core.config import TARGET_PRESETS, AdaLoraConfig, DoraConfig, FullConfig, LowRankConfig, PatternedConfig, TargetConfig
from core.errors import AdapterError
from core.events import ModuleInfo
from core.patterns import pattern_value, whole_match

ATTENTION_KINDS = frozenset({
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "dense", "c_attn", "qkv_proj",
    "query_key_value", "query", "key", "value", "Wqkv",
})
QUERY_VALUE_KINDS = frozenset({
    # a fused projection holds the query and the value (and the key), so it stands for both
    "q_proj", "v_proj", "query", "value", "c_attn", "qkv_proj", "query_key_value", "Wqkv",
})
RANK_OFFSET = 1e-5  # AdaLoRA's code divides alpha by the first rank and this, as it counts ranks of 0
ADAPTABLE = ("Linear", "Conv1D", "Experts")


def select_targets(modules: Sequence[ModuleInfo], adapter: TargetConfig) -> list[ModuleInfo]:
    """The modules that `adapter.target_modules` and its layer range choose, in the model's order.

    Raises:
        AdapterError: nothing matches, or a name of the list matches nothing.
    """
    if isinstance(adapter, FullConfig):
        return _select_whole(modules, adapter)
    able = [module for module in modules
            if module.type in ADAPTABLE and (module.type != "Experts" or takes_experts(adapter))]
    chosen = [module for module in _by_name(able, adapter.target_modules) if _in_range(module, adapter)]
    if not chosen:
        raise AdapterError("The target layers match no module of this model.", _hint(able, adapter.target_modules))
    return chosen


def takes_experts(adapter: TargetConfig) -> bool:
    """True for the methods that work on the three-dimensional weights of experts, as PEFT has it too."""
    return isinstance(adapter, PatternedConfig) and not isinstance(adapter, DoraConfig)


def _select_whole(modules: Sequence[ModuleInfo], adapter: FullConfig) -> list[ModuleInfo]:
    """The modules that full fine-tuning trains: of any type, and all that is inside of a named one."""
    target = adapter.target_modules
    if target == "all":
        chosen = list(modules)
    elif isinstance(target, str) and target in TARGET_PRESETS:
        chosen = _by_name([module for module in modules if module.type in ADAPTABLE], target)
    elif isinstance(target, str):
        chosen = [module for module in modules if whole_match(target, module.name)]
    else:
        for name in target:
            if not any(_is_or_holds(name, module.name) for module in modules):
                raise AdapterError(f"{name!r} matches no module of this model.", _hint(list(modules), target))
        chosen = [module for module in modules if any(_is_or_holds(name, module.name) for name in target)]
    chosen = [module for module in chosen if _in_range(module, adapter)]
    if not chosen:
        raise AdapterError("The trained modules match nothing in this model.", _hint(list(modules), target))
    return chosen


def _is_or_holds(target: str, name: str) -> bool:
    """True where `target` is the module called `name` by PEFT's rule, or one that it lies in."""
    return matches_suffix(name, target) or f".{target}." in f".{name}."


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
    return [module for module in able if whole_match(target, module.name)]


def matches_suffix(name: str, target: str) -> bool:
    """PEFT's rule for names of a list: the exact name, or a suffix after a dot."""
    return name == target or name.endswith(f".{target}")


def rank_of(name: str, adapter: LowRankConfig) -> int:
    """The rank r of the module called `name`; for AdaLoRA the one that it starts with."""
    if isinstance(adapter, AdaLoraConfig):
        return adapter.first_rank
    return pattern_value(adapter.rank_pattern, name, adapter.rank) if isinstance(adapter, PatternedConfig) \
        else adapter.rank


def alpha_of(name: str, adapter: LowRankConfig) -> float:
    """The alpha of the module called `name`."""
    return pattern_value(adapter.alpha_pattern, name, adapter.alpha) if isinstance(adapter, PatternedConfig) \
        else adapter.alpha


def scale_of(name: str, adapter: LowRankConfig) -> float:
    """The factor of B A: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
    rank = rank_of(name, adapter)
    if isinstance(adapter, AdaLoraConfig):
        return alpha_of(name, adapter) / (rank + RANK_OFFSET)
    stabilised = isinstance(adapter, PatternedConfig) and adapter.rslora
    return alpha_of(name, adapter) / (math.sqrt(rank) if stabilised else rank)


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
