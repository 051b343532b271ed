"""What an adapter is, which base on this machine it belongs to, and how strongly it changes each module."""

import math
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core.adapter_folder import ADALORA_TYPE, adapter_folder_bytes
from core.control import Control
from core.errors import CoreError
from core.events import AdapterInspected, Event, Progress, Result
from core.export.bases import find_bases, match_of, require_fit
from core.export.change import delta_rows
from core.export.keys import match_keys, skeleton
from core.export.loaders import AdapterFacts, extra_verdicts, facts_of_config, verdicts
from core.export.shards import FLOATING, TensorReader, TensorRecord, read_checkpoint, row_blocks
from core.jobs import InspectAdapter
from core.lora.adapter_file import AdapterFile, read_adapter
from core.lora.peft_keys import LoraPair
from core.lora.plain_form import beyond_low_rank, compatible_form
from core.lora.products import delta_norm
from core.lora.start import start_gap
from core.models.inspect import read_card
from core.models.library import resolve
from core.models.quantise import Quantisation, quantisation_in
from core.records import AdaptedModule, AdapterCard, BaseMatch, LoaderVerdict
from core.start import adapter_folder, start_tables

_DTYPE_WORDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
_METHOD_WORDS = {ADALORA_TYPE: "AdaLoRA"}


def inspect_adapter(job: InspectAdapter, control: Control) -> Iterator[Event]:
    """Describe an adapter -> AdapterInspected, Result(path, name).

    Raises:
        CoreError: it is damaged, of a kind that can not be read, or does not fit the model that was named.
    """
    folder = adapter_folder(job.adapter.expanduser().absolute())
    yield Progress("Reading the adapter", 0, 0)
    adapter = read_adapter(folder)
    control.check()
    card = describe(adapter)
    bases: tuple[BaseMatch, ...] = ()
    if not job.base:
        pass
    elif job.model:
        base = resolve(job.model)
        known = read_card(base)
        require_fit(adapter, known)
        bases = (BaseMatch(known.name, base, match_of(adapter, known.fingerprint)),)
    else:
        bases = yield from find_bases(adapter, control)
    if bases and card.settings and adapter.contents.beside():
        sure = bases[:1] if job.model or bases[0].match == "same" else bases
        gaps = [start_gap(adapter, read_card(base.path).modules) for base in sure]
        if all(gaps):
            card = replace(card, settings={}, unlike=gaps[0])
    chosen = bases[0] if bases and (job.model or bases[0].match == "same") else None
    if chosen is not None:
        modules = yield from with_shares(card.modules, adapter, chosen.path, control)
        card = replace(card, base=chosen.name, modules=modules)
    card = replace(card, bases=bases)
    yield AdapterInspected(card)
    yield Result({"path": folder, "name": card.name})


def describe(adapter: AdapterFile) -> AdapterCard:
    """What the folder alone tells."""
    tensors = [tensor for pair in adapter.pairs.values() for tensor in pair.tensors()]
    tensors += adapter.extras.tensors.values()
    tensors += [*adapter.contents.parameters.values(), *(rows.values for rows in adapter.contents.rows.values())]
    # of B, as the A of AdaLoRA comes multiplied out in fp32
    dtype = next((pair.lora_b.dtype for pair in adapter.pairs.values()), tensors[0].dtype if tensors else None)
    held = quantisation_in(adapter.origin)
    settings, unlike = _settings(adapter, held)
    facts = facts_of(adapter)
    return AdapterCard(
        path=adapter.path, name=adapter.path.parent.name if adapter.path.name == "adapter" else adapter.path.name,
        method=_method_words(adapter), rank=max([0, *(pair.lora_a.shape[0] for pair in adapter.pairs.values())]),
        parameters=sum(tensor.numel() for tensor in tensors) + _folded_away(adapter),
        bytes=adapter_folder_bytes(adapter.path),
        dtype=_DTYPE_WORDS.get(dtype, str(dtype)) if dtype else "",
        base_name=str(adapter.origin.get("base_name") or adapter.config.get("base_model_name_or_path") or ""), base="",
        modules=tuple(AdaptedModule(name, pair.lora_a.shape[0], pair.scale,
                                    delta_norm(pair) if pair.magnitude is None else None)
                      for name, pair in adapter.pairs.items()),
        loaders=tuple(_verdicts(adapter, facts)), **_compatible(adapter),
        settings=settings, unlike=unlike, origin=_origin(adapter.origin),
        quantisation=held.kind if held is not None else "")


def _folded_away(adapter: AdapterFile) -> int:
    """Numbers of the file that its updates hold multiplied out: AdaLoRA's E, one for every triplet."""
    if adapter.config.get("peft_type") != ADALORA_TYPE:
        return 0
    return sum(pair.lora_a.shape[0] for pair in adapter.pairs.values())


def facts_of(adapter: AdapterFile) -> AdapterFacts:
    """What decides how other programs read this adapter."""
    pairs = adapter.pairs
    return facts_of_config(
        adapter.config, {name: pair.lora_a.shape[0] for name, pair in pairs.items()},
        {name: pair.scale for name, pair in pairs.items()},
        tuple(name for name, pair in pairs.items() if pair.embedding),
        tuple(name for name, pair in pairs.items() if pair.kernel))


def _compatible(adapter: AdapterFile) -> dict[str, Any]:
    """What is known of its compatible form, and what the loaders make of it; nothing where it has none."""
    if beyond_low_rank(adapter) or not adapter.pairs or adapter.extras.words:
        return {}
    tensors, config = compatible_form(adapter)
    facts = facts_of(adapter)
    read = verdicts(facts_of_config(config, dict.fromkeys(facts.ranks, int(config["r"])),
                                    dict.fromkeys(facts.scales, 1.0), facts.embeddings, facts.convolutions))
    return {"compatible": tuple(read), "compatible_parameters": sum(tensor.numel() for tensor in tensors.values())}


def _settings(adapter: AdapterFile, held: Quantisation | None) -> tuple[dict[str, Any], str]:
    try:
        tables = start_tables(adapter.path, list(adapter.pairs), list(adapter.contents.parameters))
    except ValueError as error:
        return {}, str(error)
    own = tables["adapter"]
    if held is not None and own["method"] == "lora":  # it goes on over a base that is held alike
        own |= {"method": "qlora", "quantisation": held.kind, "double_quantisation": held.double}
    return {**tables, "adapter": {**own, "start_from": str(adapter.path)}}, ""


def _verdicts(adapter: AdapterFile, facts: AdapterFacts) -> list[LoaderVerdict]:
    extras = adapter.extras
    if not extras.words:
        return verdicts(facts)
    alone = extras.stands_alone_in(adapter.path)
    return extra_verdicts(extras.words, has_own=not alone,
                          is_prefix=extras.prefix_folder == adapter.path and extras.bottleneck is None)


def _method_words(adapter: AdapterFile) -> str:
    extras = adapter.extras
    own = [] if extras.stands_alone_in(adapter.path) else [_method(adapter.config)]
    if extras.prefix is not None:
        own.append(f"prefix of {len(extras.prefix.values)} tokens")
    if extras.bottleneck is not None:
        own.append(f"bottleneck adapters of {extras.bottleneck.size}")
    return " + ".join(own)


def _method(config: dict[str, Any]) -> str:
    kind = str(config.get("peft_type") or "LORA").upper()
    if kind != "LORA":
        return _METHOD_WORDS.get(kind, kind)
    name = "DoRA" if config.get("use_dora") else "LoRA"
    return f"{name}, rank-stabilised" if config.get("use_rslora") else name


def _origin(origin: dict[str, Any]) -> str:
    if isinstance(origin.get("mixed_from"), list):
        parts = [f"{part.get('adapter')} x {part.get('strength')}" for part in origin["mixed_from"]
                 if isinstance(part, dict)]
        return f"A mix of {', '.join(parts)}."
    return "Trained with LoRA Workbench." if origin.get("base_fingerprint") else "Made with another program."


# --- how strongly it changes -----------------------------------------------------------------


def with_shares(modules: tuple[AdaptedModule, ...], adapter: AdapterFile, base: Path,
                control: Control) -> Generator[Event, None, tuple[AdaptedModule, ...]]:
    """The modules with ||ΔW|| and ||ΔW|| / ||W||, the weights read from the base's files block by block."""
    records, transposed = _weights(base)
    measured = []
    with TensorReader() as reader:
        for done, module in enumerate(modules):
            yield Progress("Measuring the changes", done, len(modules), "modules")
            record = records.get(module.name)
            if record is None or record.dtype not in FLOATING:
                measured.append(module)
                continue
            pair = adapter.pairs[module.name]
            weight, change = _norms(pair, record, module.name in transposed, reader, control)
            change = change if change is not None else module.delta_norm
            share = change / weight if change is not None and weight > 0 else None
            measured.append(replace(module, delta_norm=change, share=share))
    return tuple(measured)


def _weights(base: Path) -> tuple[dict[str, TensorRecord], set[str]]:
    """The weight of every module in the base's files, and the modules that store theirs as (in, out)."""
    checkpoint = read_checkpoint(base)
    try:
        keys = match_keys(skeleton(base), checkpoint.tensors)
    except CoreError:
        return {}, set()  # a family that can not be laid out: no shares, the rest stands
    found = {parameter: checkpoint.tensors[key] for key, parameter in keys.parameter_of.items()}
    records = {}
    for parameter in keys.shapes:
        stored = next((name for name in [parameter, *sorted(keys.tied_group(parameter))] if name in found), None)
        if parameter.endswith(".weight") and stored is not None:
            records[parameter.removesuffix(".weight")] = found[stored]
    return records, {name.removesuffix(".weight") for name in keys.transposed}


def _norms(pair: LoraPair, record: TensorRecord, transposed: bool, reader: TensorReader,
           control: Control) -> tuple[float, float | None]:
    """||W||, and ||W' - W|| where that needs the weight (DoRA), else None."""
    weight_square = change_square = 0.0
    dora = pair.magnitude is not None
    blocks = [(0, record.rows)] if dora else list(row_blocks(record.rows, record.elements // max(1, record.rows)))
    for start, stop in blocks:
        control.check()
        rows = reader.rows(record, start, stop).float()
        weight_square += float(torch.linalg.vector_norm(rows, dtype=torch.float64)) ** 2
        if dora:
            change = delta_rows(pair, rows, start, stop, transposed)
            change_square += float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
    return math.sqrt(weight_square), math.sqrt(change_square) if dora else None
