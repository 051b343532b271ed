"""What keeps a run from starting from an adapter, each with its field. Plain Python without torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.adapter_folder import CONFIG_NAME, ORIGIN_NAME, read_object
from core.beside import trained_whole
from core.config import (
    AdaLoraConfig,
    DoraConfig,
    LowRankConfig,
    NoAdapterConfig,
    PatternedConfig,
    RunConfig,
    StartableConfig,
    parse_config,
)
from core.errors import AdapterError, CoreError, describe
from core.fused_parts import PARTS
from core.peft_fields import refuse_unknown_meaning
from core.records import ModelCard, ModuleInfo
from core.start import adapter_folder, start_tables
from core.targets import alpha_of, rank_of, select_targets

Told = tuple[str, str, str]  # dotted path of the field, message, hint
_UNKNOWN = "-"  # stands for the names of modules where only the tensors tell them
_ANOTHER = "Choose another one, or empty it."


def start_problem(config: RunConfig, card: ModelCard | None = None) -> Told | None:
    """(field, message, hint) for what keeps a run from starting from `adapter.start_from`; None where nothing does.

    What only the tensors tell is checked when the run begins, and what the base model tells only with its card.
    """
    adapter = config.adapter
    if not isinstance(adapter, StartableConfig) or not adapter.start_from:
        return None
    try:
        folder = adapter_folder(Path(adapter.start_from).expanduser())
        wanted = start_tables(folder, [_UNKNOWN])
        if wanted["adapter"]["method"] != "none":
            refuse_unknown_meaning(read_object(folder / CONFIG_NAME), folder)
        trained_on = read_object(folder / ORIGIN_NAME).get("base_fingerprint") \
            if (folder / ORIGIN_NAME).exists() else None
    except (CoreError, OSError) as error:
        return "adapter.start_from", describe(error).message, _ANOTHER
    except ValueError as error:
        return "adapter.start_from", f"Training can not go on from this adapter: {error}.", _ANOTHER
    if card is not None and trained_on and trained_on != card.fingerprint:
        return ("adapter.start_from", "The adapter to start from was trained on another base model.",
                "Choose that base model, or start from another adapter.")
    told = next(_differences(config, wanted), None)
    if told is None and card is not None and isinstance(adapter, LowRankConfig):
        told = _layer_difference(adapter, wanted["adapter"], card.modules, is_ours=bool(trained_on))
    return told


def _differences(config: RunConfig, wanted: Mapping[str, Any]) -> Iterator[Told]:
    """The fields in which the run is unlike the adapter that it goes on from."""
    adapter, theirs = config.adapter, parse_config(dict(wanted)).adapter
    assert isinstance(adapter, StartableConfig)
    assert isinstance(theirs, StartableConfig)
    if _kind(adapter) != _kind(theirs):
        if isinstance(theirs, NoAdapterConfig):
            yield "adapter.method", "The adapter to start from changes no layers.", "Choose none."
        else:
            yield ("adapter.method", f"The adapter to start from was trained with {theirs.method}.",
                   "Choose the same method.")
    elif isinstance(adapter, LowRankConfig) and isinstance(theirs, LowRankConfig):
        yield from _unlike_updates(adapter, theirs)
    yield from _unlike_extras(config, wanted)


def _kind(adapter: StartableConfig) -> type[StartableConfig]:
    """Methods of one kind leave the same file: QLoRA leaves LoRA's."""
    return next((kind for kind in (DoraConfig, PatternedConfig, AdaLoraConfig) if isinstance(adapter, kind)),
                NoAdapterConfig)


def _unlike_updates(adapter: LowRankConfig, theirs: LowRankConfig) -> Iterator[Told]:
    names = ["alpha"]
    if isinstance(adapter, PatternedConfig):
        if adapter.init != "kaiming":
            yield "adapter.init", "A run that goes on from an adapter has its start already.", "Set it to kaiming."
        names = ["rank", "alpha", "rslora", "ensure_weight_tying"]
        if isinstance(theirs, PatternedConfig) and sorted(adapter.new_tokens) != sorted(theirs.new_tokens):
            yield _another("adapter.new_tokens", theirs.new_tokens)
    elif isinstance(adapter, AdaLoraConfig) and isinstance(theirs, AdaLoraConfig) \
            and adapter.first_rank != theirs.first_rank:  # the rank that is to be left may be another one
        yield _another("adapter.initial_rank", theirs.first_rank)
    for name in names:
        if getattr(adapter, name) != getattr(theirs, name):
            yield _another(f"adapter.{name}", getattr(theirs, name))
    if isinstance(adapter, PatternedConfig) and isinstance(theirs, PatternedConfig) \
            and adapter.fused_parts != theirs.fused_parts:
        yield ("adapter.fused_parts", "The adapter to start from has other parts of fused layers: "
               f"{', '.join(theirs.fused_parts or PARTS)}.", "Set the same.")


def _unlike_extras(config: RunConfig, wanted: Mapping[str, Any]) -> Iterator[Told]:
    """What the adapter has, the run must have alike; what only the run has, begins anew."""
    for table, what in (("prefix", "a prefix"), ("bottleneck", "bottleneck adapters")):
        own, theirs = getattr(config, table), wanted[table]
        if theirs is None:
            continue
        if own is None:
            yield ("adapter.start_from", f"The adapter to start from has {what}, which this run does not train.",
                   f"Switch on {what.removeprefix('a ')}, or start from another adapter.")
            continue
        for name, value in theirs.items():
            if getattr(own, name) != value:
                yield _another(f"{table}.{name}", value)
    if config.prefix is not None and wanted["prefix"] is not None and config.prefix.projection:
        yield ("prefix.projection", "The network that computed the prefix is not kept in an adapter.",
               "Switch it off.")
    if isinstance(config.adapter, NoAdapterConfig) and wanted["prefix"] is None and wanted["bottleneck"] is None:
        yield "adapter.start_from", "The adapter to start from has nothing that this run trains.", _ANOTHER


def _another(field: str, value: Any) -> Told:
    if isinstance(value, bool):
        shown = "on" if value else "off"
    elif isinstance(value, tuple):
        shown = ", ".join(map(str, value)) or "none"
    else:
        shown = f"{value:g}" if isinstance(value, float) else str(value)
    return field, f"The adapter to start from has another value here: {shown}.", "Set the same."


def _layer_difference(adapter: LowRankConfig, wanted: Mapping[str, Any], modules: Sequence[ModuleInfo], *,
                      is_ours: bool) -> Told | None:
    """The first layer of this model in which the run is unlike the adapter that it goes on from.

    What others' adapters hold whole is compared when the run begins: their names may mean more than ours.
    """
    theirs = parse_config({"adapter": dict(wanted)}).adapter
    assert isinstance(theirs, LowRankConfig)
    known = list(wanted["target_modules"]) != [_UNKNOWN]
    try:
        targets = select_targets(modules, adapter)
        other = select_targets(modules, theirs) if known else targets
        whole = {each.name for each in trained_whole(modules, targets, adapter)}
        their_whole = {each.name for each in trained_whole(modules, other, theirs)}
    except AdapterError:
        return None  # a problem of the target layers, told there, or of the adapter, which the tensors tell
    lacks = _lacking({module.name for module in targets}, {module.name for module in other})
    if lacks:
        return "adapter.target_modules", lacks, "Choose the same target layers as the adapter's."
    lacks = _lacking(whole, their_whole)
    if lacks and is_ours:
        field = "bias" if lacks.endswith(".bias.") else "modules_to_save"
        return f"adapter.{field}", lacks, "Train the same biases and modules whole as the adapter did."
    for module in targets:
        for field, value_of in (("rank_pattern", rank_of), ("alpha_pattern", alpha_of)):
            mine, its = value_of(module.name, adapter), value_of(module.name, theirs)
            if not math.isclose(mine, its, rel_tol=1e-9):
                return (f"adapter.{field}", f"{module.name} has {field.partition('_')[0]} {its:g} in the adapter to "
                        f"start from, but {mine:g} in this run.", "Set the same.")
    return None


def _lacking(own: set[str], theirs: set[str]) -> str:
    """A sentence about the first name that only one of the two has; "" where they are the same."""
    different = sorted(own ^ theirs)
    if not different:
        return ""
    return f"{'The adapter to start from' if different[0] in own else 'The run'} does not change {different[0]}."
