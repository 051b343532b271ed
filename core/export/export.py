"""From a run to something to take away: an adapter or a merged model, with its receipt."""

import json
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from core import files
from core.adapter_folder import (
    ADALORA_TYPE,
    BOTTLENECK_CONFIG,
    BOTTLENECK_FOLDER,
    CONFIG_NAME,
    PREFIX_FOLDER,
    adapter_folder_bytes,
    read_object,
)
from core.control import Control
from core.errors import AdapterError
from core.events import Event, Progress, ReceiptReady, Result, Warned, to_plain
from core.export.bases import public_name
from core.export.card import CardFacts, model_card
from core.export.keys import ModelKeys, match_keys, skeleton
from core.export.loaders import rows_for_tokens
from core.export.merge import write_merged
from core.export.place import free_place, require_space, words_for_full_disk
from core.export.plan import MergePlan, plan_merge
from core.export.receipt import adapter_receipt, merged_receipt
from core.export.shards import read_checkpoint
from core.export.source import Source, find_source
from core.export.stand_in import dequantised_bytes, stored_dtype, write_assembled, write_dequantised
from core.export.tried import tried_words
from core.export.versions import AdapterCase, MergedCase, fits_whole
from core.export.whole_change import change_that_arrived, with_loss
from core.jobs import Export
from core.lora.adapter_file import (
    WEIGHTS_NAME,
    AdapterFile,
    contents_of,
    read_adapter,
    saved_as,
    write_adapter,
    write_origin,
)
from core.lora.extra_files import copy_extras
from core.lora.peft_keys import LoraPair
from core.lora.plain_form import compatible_form, padded
from core.lora.tokenizer_files import copy_tokenizer
from core.models.card_file import new_card, write_card
from core.models.companions import companion_bytes, copy_companions, write_model_config
from core.models.inspect import read_card
from core.records import Receipt

RECEIPT_NAME = "receipt.json"
_SPARE_BYTES = 2**20  # for the index, the receipt and the card
_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export(job: Export, control: Control) -> Iterator[Event]:
    """Write an adapter or a merged model into the new folder `job.out`, with its receipt -> ReceiptReady, Result.

    The folder appears whole, with its receipt, or not at all. A failed receipt is said in the Result
    (`passed` false) and in the folder.

    Raises:
        CoreError: no such run or checkpoint, another base than in training, a folder in use, a full disk,
            numbers that do not fit the chosen type.
        Cancelled: asked to stop; nothing is left behind.
    """
    started = time.perf_counter()
    out = job.out.expanduser().absolute()
    yield Progress("Checking the run", 0, 0)
    source = find_source(job)
    if job.dtype == "base" and job.merge_into == "dequantised":
        job = replace(job, dtype=stored_dtype(source.base))  # the dequantised ones are held in another type
    control.check()
    with free_place(out), words_for_full_disk(out), files.scratch_folder(out.parent) as scratch:
        source = yield from _stand_in(job, source, scratch, control)
        planned = None if job.to == "adapter" else _plan(job, source)
        require_space(out, _needed_bytes(source, planned[0] if planned else None))
        with files.atomic_folder(out) as folder:
            if planned is None:
                receipt = yield from _export_adapter(job, source, folder, out, control)
            else:
                receipt = yield from _export_merged(job, source, *planned, folder, out, control)
            _write_papers(folder, job, source, receipt)
            written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if receipt is not None:
        if receipt.change_is_rounded_away:
            yield Warned(f"Rounding to {receipt.dtype} lost much of what was learned: the change that arrived is off "
                         f"by {receipt.realised_delta_error:.0%}.", "Export as fp32 to keep it.")
        yield ReceiptReady(receipt)
    yield Result({
        "path": out, "to": job.to, "passed": receipt.passed if receipt else None,
        "explanation": receipt.explanation if receipt else "The export was not checked.",
        "largest_difference": receipt.largest_difference if receipt else None,
        "realised_delta_error": receipt.realised_delta_error if receipt else None,
        "bytes": written, "seconds": time.perf_counter() - started,
    })


def _stand_in(job: Export, source: Source, scratch: Path, control: Control) -> Generator[Event, None, Source]:
    """The source with another folder as its base, where what is merged into lies nowhere yet."""
    if source.is_whole and job.checkpoint:
        require_space(scratch, 4 * read_card(source.base).parameters)
        yield Progress("Putting the checkpoint together", 0, 0)
        write_assembled(source.base, source.adapter.path, scratch)
        return replace(source, base=scratch)
    if job.merge_into == "original" or source.quantisation is None:
        return source
    require_space(scratch, dequantised_bytes(source.base, source.quantisation))
    yield from write_dequantised(source.base, source.quantisation, scratch, control)
    return replace(source, base=scratch, what=f"dequantised base ({source.quantisation.words}) + adapter")


def _plan(job: Export, source: Source) -> tuple[MergePlan, ModelKeys]:
    if source.adapter.extras.words:
        raise AdapterError(f"The adapter has {source.adapter.extras.words}, which are no change of the weights: it can "
                           "not be merged.", "Export it as an adapter.")
    checkpoint = read_checkpoint(source.base)
    keys = match_keys(skeleton(source.base), checkpoint.tensors)
    return plan_merge(checkpoint, keys, source.adapter.contents, job.dtype, job.shard_bytes), keys


def _export_merged(job: Export, source: Source, plan: MergePlan, keys: ModelKeys, folder: Path, out: Path,
                   control: Control) -> Generator[Event, None, Receipt | None]:
    yield from write_merged(plan, folder, control)
    copy_companions(source.base, folder)
    copy_tokenizer(source.adapter.path, folder)  # where it has more tokens than the base's
    write_model_config(source.base, folder, job.dtype, plan.untied, plan.vocabulary)
    origin = f"Merged from {source.base_name} and the adapter of the run {source.name}."
    if source.is_whole:
        origin = f"Fine-tuned from {source.base_name} in the run {source.name}."
    write_card(folder, new_card(origin, source.base_name, 0, ""))
    if not job.receipt:
        return None
    case = MergedCase(source.base, source.adapter.path, source.adapter.pairs, folder, plan, keys,
                      source.what, not source.is_whole)
    receipt = yield from merged_receipt(case, out, control)
    if source.trained_from is not None and case.is_rounded:
        arrived = yield from change_that_arrived(source.trained_from, source.base, folder, control)
        return with_loss(receipt, arrived)
    quantisation = source.quantisation
    if quantisation is None or job.merge_into == "dequantised" or not fits_whole(case):
        return receipt
    yield Progress("Comparing with what was tried", 0, 0)
    words = tried_words(source.base, source.adapter.path, folder, quantisation, control)
    return replace(receipt, explanation=f"{receipt.explanation} {words}")


def _export_adapter(job: Export, source: Source, folder: Path, out: Path,
                    control: Control) -> Generator[Event, None, Receipt | None]:
    yield Progress("Writing the adapter", 0, 1)
    tensors, config, wanted = _in_form(job.form, source.adapter)
    extras = source.adapter.extras
    if job.dtype != "base":
        tensors = {name: saved_as(name, tensor, _TORCH_DTYPES[job.dtype]) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{name} holds numbers too large for {job.dtype}; nothing was written.",
                               "Choose bf16 or fp32 instead.")
    # where the base lies on this machine is nobody else's business
    origin = {key: value for key, value in source.adapter.origin.items() if key != "base_path"}
    origin |= {"base_origin": source.base_origin} if "base_origin" in origin else {}
    if tensors:
        write_adapter(folder, tensors, config, origin)
    write_origin(folder, origin)
    copy_tokenizer(source.adapter.path, folder)
    copy_extras(source.adapter.path, folder, None if job.dtype == "base" else _TORCH_DTYPES[job.dtype], origin)
    _name_base(folder, source.base_name)
    yield Progress("Writing the adapter", 1, 1)
    if not job.receipt:
        return None
    # AdaLoRA's file holds A and E apart, each rounded for itself
    rounded = contents_of(tensors, config, folder).pairs if config.get("peft_type") == ADALORA_TYPE else None
    written = read_adapter(folder)
    case = AdapterCase(source.base, source.adapter.path, wanted, folder, written.pairs, rounded, extras, written.extras,
                       source.adapter.contents, written.contents)
    return (yield from adapter_receipt(case, out, control))


def _name_base(folder: Path, base_name: str) -> None:
    """Call the base by its name in every configuration that an adapter's folder may hold."""
    for path in (folder / CONFIG_NAME, folder / PREFIX_FOLDER / CONFIG_NAME,
                 folder / BOTTLENECK_FOLDER / BOTTLENECK_CONFIG):
        if path.exists():
            config = read_object(path)
            config["base_model_name_or_path"] = public_name(str(config.get("base_model_name_or_path") or ""), base_name)
            files.write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _in_form(form: str, adapter: AdapterFile) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, LoraPair]]:
    """Tensors, adapter_config.json and the updates that both stand for."""
    if form == "compatible":
        tensors, config = compatible_form(adapter)
        return tensors, config, padded(adapter.pairs, int(config["r"]))
    tensors = load_file(adapter.path / WEIGHTS_NAME) if adapter.has_own_files else {}
    return tensors, adapter.config, adapter.pairs


def _write_papers(folder: Path, job: Export, source: Source, receipt: Receipt | None) -> None:
    if receipt is not None:
        plain = to_plain(ReceiptReady(receipt))["receipt"]
        files.write_text(folder / RECEIPT_NAME, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
    kind, beside = _kind_words(source.adapter)
    token_rows = rows_for_tokens(source.adapter.config)
    facts = CardFacts(job.to, source.base_name, source.base_origin, source.name, job.checkpoint,
                      source.config, receipt, kind, token_rows if token_rows > read_card(source.base).vocabulary else 0,
                      (folder / "tokenizer_config.json").exists(), beside)
    files.write_text(folder / "README.md", model_card(facts))


def _kind_words(adapter: AdapterFile) -> tuple[str, str]:
    """What is exported, and what lies in sub-folders of it."""
    extras = adapter.extras
    if not extras.stands_alone_in(adapter.path):
        return "LoRA adapter", extras.words
    name = "set of bottleneck adapters" if extras.prefix is None else "trained prefix"
    return name, extras.words if extras.bottleneck is not None else ""


def _needed_bytes(source: Source, plan: MergePlan | None) -> int:
    if plan is None:
        pairs = source.adapter.pairs.values()
        rank = max([1, *(pair.lora_a.shape[0] for pair in pairs)])  # the compatible form has one for all
        numbers = rank * sum(pair.lora_a.shape[1] + pair.lora_b.shape[0] for pair in pairs)
        return max(4 * numbers, adapter_folder_bytes(source.adapter.path)) + _SPARE_BYTES
    return plan.nbytes + companion_bytes(source.base) + _SPARE_BYTES
