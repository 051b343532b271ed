"""What ticks in the tree of target layers mean in the config, and what the line of text below it means. No widgets."""

import re
from collections.abc import Iterator, Mapping, Sequence

from core.config import TARGET_PRESETS, FullConfig, LoraConfig, TargetedConfig
from core.errors import AdapterError
from core.records import ModuleInfo
from core.targets import ADAPTABLE, NAMED_ONLY, select_targets, takes_experts

TARGETS = "adapter.target_modules"
Target = str | tuple[str, ...]
_EVERYTHING = ".*"  # as a pattern: all that the method and the layer range allow
_NAME = re.compile(r"[\w.-]+")


def presets(adapter: TargetedConfig) -> tuple[str, ...]:
    """The words that stand for a choice with this method."""
    return ("all", *TARGET_PRESETS) if isinstance(adapter, FullConfig) else TARGET_PRESETS


def shown_modules(modules: Sequence[ModuleInfo], adapter: TargetedConfig) -> tuple[ModuleInfo, ...]:
    """What this method can change: full fine-tuning everything, LoRA embeddings and convolutions too."""
    if isinstance(adapter, FullConfig):
        return tuple(modules)
    types = {*ADAPTABLE, *(NAMED_ONLY if isinstance(adapter, LoraConfig) else ())}
    if not takes_experts(adapter):
        types.discard("Experts")
    return tuple(module for module in modules if module.type in types)


def group_modules(modules: Sequence[ModuleInfo]) -> dict[str, list[ModuleInfo]]:
    """Modules by kind, the layers together; one name in two places ("attn.c_proj", "mlp.c_proj") stays two kinds."""
    by_place: dict[str, list[ModuleInfo]] = {}
    for module in modules:
        by_place.setdefault(re.sub(r"\.\d+(?=\.)", ".*", module.name), []).append(module)
    return {_short_name(place, list(by_place)): members for place, members in by_place.items()}


def _short_name(place: str, places: Sequence[str]) -> str:
    """The shortest end of a place that no other one has."""
    return next((end for end in _ends(place) if sum(f".{other}".endswith(f".{end}") for other in places) == 1), place)


def _ends(name: str) -> Iterator[str]:
    """`c`, `b.c` and `a.b.c` of a.b.c."""
    parts = name.split(".")
    return (".".join(parts[-length:]) for length in range(1, len(parts) + 1))


def selected(modules: Sequence[ModuleInfo], adapter: TargetedConfig) -> set[str]:
    """Names of the modules that the config chooses; of a list also where some of its names match nothing."""
    try:
        return {module.name for module in select_targets(modules, adapter)}
    except AdapterError:  # told as a problem of the field
        target = adapter.target_modules
    if isinstance(target, str) or len(target) < 2:
        return set()
    return {found for name in target for found in selected(modules, _with_target(adapter, (name,)))}


def as_config(modules: Sequence[ModuleInfo], ticked: set[str], adapter: TargetedConfig) -> dict[str, object]:
    """The config fields that choose exactly the ticked modules, in the shortest words.

    A preset's name where one equals the choice, else kinds ("q_proj") where whole kinds are ticked, and the full
    names of single modules. Names that mean nothing in the tree are kept. An empty choice is passed on for the
    config to refuse.
    """
    shown = shown_modules(modules, adapter)
    values: dict[str, object] = {}
    if ticked - selected(modules, _with_target(adapter, _EVERYTHING)):
        values = {"adapter.first_layer": 0, "adapter.last_layer": None}  # the layer range would hide these ticks
        adapter = adapter.model_copy(update={"first_layer": 0, "last_layer": None})
    kept = _outside(modules, {module.name for module in shown}, adapter)
    for preset in presets(adapter) if not kept else ():
        if selected(modules, _with_target(adapter, preset)) == ticked:
            return values | {TARGETS: preset}
    groups = group_modules(shown)
    for names in (_kinds(groups, ticked), _kinds_and_names(groups, ticked)):
        if selected(modules, _with_target(adapter, names)) == ticked:
            return values | {TARGETS: (*names, *kept)}
    return values | {TARGETS: (*(module.name for module in shown if module.name in ticked), *kept)}


def _kinds(groups: Mapping[str, Sequence[ModuleInfo]], ticked: set[str]) -> tuple[str, ...]:
    """Those of which anything is ticked: right where the layer range leaves out the rest."""
    return tuple(kind for kind, members in groups.items() if any(member.name in ticked for member in members))


def _kinds_and_names(groups: Mapping[str, Sequence[ModuleInfo]], ticked: set[str]) -> tuple[str, ...]:
    """Kinds that are ticked as a whole, and the full names of single modules."""
    return tuple(name for kind, members in groups.items() for name in (
        (kind,) if all(member.name in ticked for member in members)
        else (member.name for member in members if member.name in ticked)))


def _outside(modules: Sequence[ModuleInfo], shown: set[str], adapter: TargetedConfig) -> tuple[str, ...]:
    """Names of the list for which there is no box: they are not unticked by ticking something else."""
    target = adapter.target_modules
    if isinstance(target, str):
        return ()
    in_reach = shown & selected(modules, _with_target(adapter, _EVERYTHING))
    ends = {end for name in in_reach for end in _ends(name)}  # looked up, as a list may have a name for every module
    return tuple(name for name in target
                 if name not in ends and not shown & selected(modules, _with_target(adapter, (name,))))


def _with_target(adapter: TargetedConfig, target: Target) -> TargetedConfig:
    return adapter.model_copy(update={"target_modules": target})


def targets_text(target: Target) -> str:
    """A preset or a pattern as it is, names with commas between them."""
    return target if isinstance(target, str) else ", ".join(target)


def parse_targets(text: str, adapter: TargetedConfig) -> Target:
    """A preset's name, or names between commas, else a regular expression; nothing at all is an empty list."""
    text = text.strip()
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if text in presets(adapter) or not all(_NAME.fullmatch(part) for part in parts):
        return text
    return tuple(dict.fromkeys(parts))
