"""Which modules an adapter is put on. Plain Python, shared by injection, estimate and the form."""

import math
from collections.abc import Sequence

from core.config import (
    TARGET_PRESETS,
    AdaLoraConfig,
    DoraConfig,
    FullConfig,
    LoraConfig,
    LowRankConfig,
    PatternedConfig,
    TargetConfig,
)
from core.config.section import Section
from core.errors import AdapterError
from core.patterns import pattern_value, whole_match
from core.records import ModuleInfo

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
NAMED_ONLY = ("Embedding", "Conv1d", "Conv2d")  # plain LoRA alone adapts these, and only where they are named


def select_targets(modules: Sequence[ModuleInfo], adapter: TargetConfig) -> list[ModuleInfo]:
    """The modules that `adapter.target_modules` and its layer range choose, in the model's order.

    Raises:
        AdapterError: nothing matches, or a name of the list matches nothing.
    """
    if isinstance(adapter, FullConfig):
        return _select_whole(modules, adapter)
    able = [module for module in modules if module.type in (*ADAPTABLE, *NAMED_ONLY)]
    _refuse_others(modules, able, adapter.target_modules)
    if not takes_experts(adapter):
        able = _without(able, ("Experts",), adapter.target_modules, "holds the weights of experts")
    if not isinstance(adapter, LoraConfig):
        able = _without(able, NAMED_ONLY, adapter.target_modules, "is not a linear layer")
    chosen = [module for module in _by_name(able, adapter.target_modules) if _in_range(module, adapter)]
    if not chosen:
        raise AdapterError("The target layers match no module of this model.", _hint(able, adapter.target_modules))
    return _with_tied(modules, chosen, adapter)


def keeps_tied(adapter: Section) -> bool:
    """True where embedding and output head, tied in the base, are changed together."""
    return isinstance(adapter, PatternedConfig) and adapter.ensure_weight_tying


def _with_tied(modules: Sequence[ModuleInfo], chosen: list[ModuleInfo], adapter: TargetConfig) -> list[ModuleInfo]:
    """With the embedding the head that shares its weight, and the other way round, where both are kept tied."""
    if not keeps_tied(adapter):
        return chosen
    names = {module.name for module in chosen}
    names |= {name for module in modules if module.tied_to and {module.name, module.tied_to} & names
              for name in (module.name, module.tied_to)}
    return [module for module in modules if module.name in names]


def takes_experts(adapter: TargetConfig) -> bool:
    """True for the methods that work on the three-dimensional weights of experts, as PEFT has it too."""
    return isinstance(adapter, PatternedConfig) and not isinstance(adapter, DoraConfig)


def tied_head(targets: Sequence[ModuleInfo], adapter: Section) -> ModuleInfo | None:
    """The output head among the targets whose update is the embedding's, which is there too; None where there is none.
    """
    return next((module for module in targets if module.tied_to), None) if keeps_tied(adapter) else None


def _refuse_others(modules: Sequence[ModuleInfo], able: Sequence[ModuleInfo], target: str | tuple[str, ...]) -> None:
    """Raises AdapterError where a name means only what is in the model but is no layer that can be adapted."""
    hint = "Choose other target layers; what is to be trained whole belongs into modules_to_save."
    known = by_ending(able)
    for name in target if isinstance(target, tuple) else ():
        if name not in TARGET_PRESETS and name not in known \
                and any(_is_or_holds(name, module.name) for module in modules):
            raise AdapterError(f"{name!r} is not a linear layer, so it can not be adapted.", hint)
    if isinstance(target, str) and target not in TARGET_PRESETS \
            and not any(whole_match(target, module.name) for module in able):
        other = next((module.name for module in modules if whole_match(target, module.name)), "")
        if other:
            raise AdapterError(f"{other} is not a linear layer, so it can not be adapted.", hint)


def _without(able: list[ModuleInfo], types: Sequence[str], target: str | tuple[str, ...],
             reason: str) -> list[ModuleInfo]:
    """The modules of other types. Raises AdapterError where a name of the list means none but such."""
    others = [module for module in able if module.type not in types]
    for name in target if isinstance(target, tuple) else ():
        if not any(matches_suffix(module.name, name) for module in others) \
                and any(matches_suffix(module.name, name) for module in able):
            raise AdapterError(f"{name!r} {reason}, which this method can not adapt.",
                               "Choose the method LoRA, or other target layers.")
    return others


def experts_problem(targets: Sequence[ModuleInfo], adapter: LowRankConfig) -> tuple[str, str, str] | None:
    """(field, message, hint) for what can not be done where experts are among the targets; None where all can."""
    if not isinstance(adapter, PatternedConfig) or not any(module.experts for module in targets):
        return None
    if adapter.dropout > 0:
        return ("dropout", "Dropout is not offered on the weights of experts: PEFT could not read such an adapter.",
                "Set it to 0, or choose target layers without the experts.")
    if adapter.init not in ("kaiming", "gaussian"):
        return ("init", f"The start {adapter.init} is not offered on the weights of experts.",
                "Choose kaiming, or target layers without the experts.")
    return None


def experts_advice(modules: Sequence[ModuleInfo], adapter: TargetConfig) -> tuple[str, str, str] | None:
    """(field, message, hint) where a preset leaves out experts, as the method can not adapt them."""
    experts = any(module.experts for module in modules)
    if not experts or takes_experts(adapter) or adapter.target_modules != "all-linear":
        return None
    return ("target_modules", "This method leaves the experts of this model, which hold most of its weights, as they "
            "are.", "The method LoRA adapts them too.")


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
        names, known = set(), by_ending(able)
        for name in target:
            found = _by_name(able, name) if name in TARGET_PRESETS else known.get(name, [])
            if not found:
                raise AdapterError(f"The target layer {name!r} matches no module of this model.", _hint(able, target))
            names |= {module.name for module in found}
        return [module for module in able if module.name in names]
    if target in TARGET_PRESETS:
        able = [module for module in able if module.type in ADAPTABLE]
    if target == "all-linear":
        # a map to one number is a switch (Qwen-MoE's shared_expert_gate) and has no rank to give
        return [module for module in able if not module.is_output_head and module.out_features > 1]
    if target == "attention":
        return [module for module in able if _is_attention(module)]
    if target == "q-v":
        return [module for module in able if module.kind in QUERY_VALUE_KINDS and module.layer >= 0]
    return [module for module in able if whole_match(target, module.name)]


def by_ending(modules: Sequence[ModuleInfo]) -> dict[str, list[ModuleInfo]]:
    """The modules by every text that means them by `matches_suffix`: a run may name a thousand of them one by one."""
    found: dict[str, list[ModuleInfo]] = {}
    for module in modules:
        parts = module.name.split(".")
        for first in range(len(parts)):
            found.setdefault(".".join(parts[first:]), []).append(module)
    return found


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
