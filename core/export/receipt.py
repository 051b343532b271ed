"""The proof that an export equals base + adapter, measured on what was read back from the disk."""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from core.control import Control
from core.errors import CoreError
from core.events import Event, Progress
from core.export.merge import DeltaError, verify_merged
from core.export.probe import PROMPTS, Probe, Runner, make_probes, probe_stop_tokens
from core.export.shards import read_checkpoint
from core.export.versions import (
    AdapterCase,
    MergedCase,
    Version,
    adapter_versions,
    fits_whole,
    merged_versions,
)
from core.lora.adapter_file import LoraPair
from core.models.load import load_tokenizer
from core.records import Receipt, ReceiptRow

TOLERANCE = 1e-4  # of logits
Kind = Literal["adapter", "merged"]
_DTYPE_WORDS = {"F32": "fp32", "F64": "fp64", "BF16": "bf16", "F16": "fp16"}
_TORCH_WORDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass
class Comparison:
    """What the runs of all versions gave."""

    differences: list[float] = field(default_factory=list)  # per prompt, export against what it must equal
    honest: list[float] = field(default_factory=list)  # per prompt, export against base + adapter unrounded
    agreement: list[float] = field(default_factory=list)  # per prompt, first choices of export and base + adapter
    texts_adapter: list[str] = field(default_factory=list)
    texts_export: list[str] = field(default_factory=list)

    @property
    def largest(self) -> float:
        """The largest difference of a logit that should be none; NaN if any logit is NaN."""
        return _largest(self.differences)


def merged_receipt(case: MergedCase, path: Path, control: Control,
                   whole: bool | None = None) -> Generator[Event, None, Receipt]:
    """Compare a merged export with base + adapter.

    Args:
        case: where the export now lies, and what it must equal.
        path: the name it will have.
        control: a stop raises Cancelled.
        whole: hold the model in memory, or run it layer by layer; None: as the free memory says.
    """
    report = yield from verify_merged(case.plan, read_checkpoint(case.export), control)
    dtype = _written_type(case)
    whole = fits_whole(case) if whole is None else whole
    try:
        versions = merged_versions(case, whole=whole)
        compared = yield from _compare(versions, case.export, case.base, control, runs=3 if case.is_rounded else 2)
    except CoreError as error:
        control.check()
        return _unproven("merged", path, dtype, report, error)
    words = _merged_words(case, dtype, compared, report, whole=whole)
    return _receipt("merged", path, dtype, compared, report, words)


def adapter_receipt(case: AdapterCase, path: Path, control: Control,
                    whole: bool | None = None) -> Generator[Event, None, Receipt]:
    """Compare an exported adapter with the run's own; arguments as for `merged_receipt`."""
    report = compare_pairs(case.pairs, case.exported, case.rounded)
    report.damaged += damaged_extras(case.extras.tensors, case.exported_extras.tensors)
    report.damaged += damaged_extras(case.contents.beside(), case.exported_contents.beside())
    written = [*(pair.lora_a for pair in case.exported.values()), *case.exported_extras.tensors.values(),
               *case.exported_contents.beside().values()]
    dtype = _TORCH_WORDS.get(written[0].dtype, "fp32")
    whole = fits_whole(case) if whole is None else whole
    try:
        versions = adapter_versions(case, whole=whole)
        compared = yield from _compare(versions, case.base, case.base, control, runs=3 if case.is_rounded else 2)
    except CoreError as error:
        control.check()
        return _unproven("adapter", path, dtype, report, error)
    words = _adapter_words(case, dtype, compared, report, whole=whole)
    return _receipt("adapter", path, dtype, compared, report, words)


def _compare(versions: Iterator[tuple[Version, Runner]], tokenizer_folder: Path, base: Path, control: Control,
             runs: int) -> Generator[Event, None, Comparison]:
    """Run every version on the fixed prompts and on the answers that base + adapter gave to them."""
    probes = make_probes(load_tokenizer(base))
    tokenizer = load_tokenizer(tokenizer_folder)
    if [probe.ids for probe in make_probes(tokenizer)] != [probe.ids for probe in probes]:
        raise CoreError("The exported tokenizer or chat template makes other tokens than the base model's.")
    stop_ids = probe_stop_tokens(base, tokenizer)
    prompts = [probe.ids for probe in probes]
    answers: dict[Version, list[list[int]]] = {}
    logits: dict[Version, list[Tensor]] = {}
    sequences: list[list[int]] = []
    yield Progress("Comparing answers", 0, runs, "runs")
    for done, (version, runner) in enumerate(versions, 1):
        control.check()
        if version != "rounded":
            answers[version] = runner.greedy(prompts, stop_ids, control)
        if version == "adapter":
            sequences = [prompt + answer for prompt, answer in zip(prompts, answers[version], strict=True)]
        logits[version] = runner.logits(sequences, control)
        del runner  # the next version must not stand beside it in memory
        yield Progress("Comparing answers", done, runs, "runs")
    return _comparison(probes, logits, answers, tokenizer)


def _comparison(probes: Sequence[Probe], logits: dict[Version, list[Tensor]],
                answers: dict[Version, list[list[int]]], tokenizer: PreTrainedTokenizerBase) -> Comparison:
    expected = logits.get("rounded", logits["adapter"])
    compared = Comparison()
    for number in range(len(probes)):
        export, adapter = logits["export"][number], logits["adapter"][number]
        compared.differences.append(_difference(export, expected[number]))
        compared.honest.append(_difference(export, adapter))
        compared.agreement.append(float((export.argmax(-1) == adapter.argmax(-1)).double().mean()))
        compared.texts_adapter.append(_text(tokenizer, answers["adapter"][number]))
        compared.texts_export.append(_text(tokenizer, answers["export"][number]))
    return compared


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _difference(left: Tensor, right: Tensor) -> float:
    if left.shape != right.shape:
        return math.inf
    difference = (left - right).abs()
    difference[left == right] = 0.0  # equal infinities are equal
    return float(difference.max())


def _largest(values: Sequence[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def compare_pairs(wanted: dict[str, LoraPair], found: dict[str, LoraPair],
                  rounded: dict[str, LoraPair] | None = None) -> DeltaError:
    """The error of the update of an exported adapter, and the modules that are not the run's, rounded.

    ||B'A' - BA||² is taken from small products, [B', -B] ([A'; A]), without forming out x in matrices.
    """
    report = DeltaError(damaged=sorted(set(wanted) ^ set(found)))
    for name in sorted(set(wanted) & set(found)):
        old, new = wanted[name], found[name]
        must = (rounded or wanted)[name]
        same = (new.scale == must.scale and len(new.tensors()) == len(must.tensors())
                and all(torch.equal(left, right.to(left.dtype))
                        for left, right in zip(new.tensors(), must.tensors(), strict=True)))
        if not same:
            report.damaged.append(name)
        left, right = old.scale * old.lora_b.double(), old.lora_a.double()
        change_left = torch.cat([new.scale * new.lora_b.double(), -left], dim=1)
        change_right = torch.cat([new.lora_a.double(), right])
        exact = same and new.lora_a.dtype == old.lora_a.dtype  # where the small products leave a trace of fp64
        error_square = 0.0 if exact else _square_norm(change_left, change_right)
        report.add(name, error_square, _square_norm(left, right))
    return report


def damaged_extras(old: dict[str, Tensor], new: dict[str, Tensor]) -> list[str]:
    """The tensors beside the updates that are not the run's, in the number types of the export."""
    return sorted(set(old) ^ set(new)) + [
        name for name in sorted(set(old) & set(new)) if not torch.equal(new[name], old[name].to(new[name].dtype))]


def _square_norm(left: Tensor, right: Tensor) -> float:
    """||left right||² in fp64, as the trace of (leftᵀ left) (right rightᵀ)."""
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))


def _receipt(kind: Kind, path: Path, dtype: str, compared: Comparison, report: DeltaError, words: str) -> Receipt:
    rows = tuple(
        ReceiptRow(probe, text_adapter, text_export, difference, agreement)
        for probe, text_adapter, text_export, difference, agreement in zip(
            PROMPTS, compared.texts_adapter, compared.texts_export, compared.differences,
            compared.agreement, strict=True))
    passed = compared.largest <= TOLERANCE and not report.damaged
    agreement = sum(compared.agreement) / len(compared.agreement)
    return Receipt(kind, path, dtype, passed, compared.largest, TOLERANCE,
                   agreement, report.overall, rows, words)


def _unproven(kind: Kind, path: Path, dtype: str, report: DeltaError, error: CoreError) -> Receipt:
    words = f"The export could not be compared with base + adapter: {error.message}"
    return Receipt(kind, path, dtype, False, math.inf, TOLERANCE, 0.0,
                   report.overall, (), words)


def _written_type(case: MergedCase) -> str:
    """The number types of the files, the commonest first: "bf16", or "bf16, fp32"."""
    sizes: dict[str, int] = {}
    for tensor in case.plan.tensors:
        if tensor.spec.dtype in _DTYPE_WORDS:
            sizes[tensor.spec.dtype] = sizes.get(tensor.spec.dtype, 0) + tensor.spec.nbytes
    return ", ".join(_DTYPE_WORDS[name] for name in sorted(sizes, key=lambda name: -sizes[name]))


def _merged_words(case: MergedCase, dtype: str, compared: Comparison, report: DeltaError, *, whole: bool) -> str:
    target = f"{case.what} rounded to {dtype}" if case.is_rounded else case.what
    words = [_verdict("merged model", target, compared, report)]
    if case.is_rounded and report.delta_square > 0:
        words.append(f"Rounding to {dtype} changes the adapter's effect on the weights by {report.overall:.2%} "
                     f"(most in {report.worst}: {report.worst_error:.2%}) and moves logits by up to "
                     f"{_largest(compared.honest):.2g}; fp32 files would keep it whole.")
    if not whole:
        words.append("The model is large, so it was run layer by layer and the answers are short.")
    return " ".join(words)


def _adapter_words(case: AdapterCase, dtype: str, compared: Comparison, report: DeltaError, *, whole: bool) -> str:
    target = f"the run's adapter rounded to {dtype}" if case.is_rounded else "the run's adapter"
    words = [_verdict("adapter", target, compared, report)]
    if case.is_rounded:
        change = f"changes its effect on the weights by {report.overall:.2%} and " if case.pairs else ""
        words.append(f"Rounding {change}moves logits by up to {_largest(compared.honest):.2g}.")
    if not whole:
        words.append("The base model is large, so it was run layer by layer and the answers are short.")
    return " ".join(words)


def _verdict(what: str, target: str, compared: Comparison, report: DeltaError) -> str:
    if report.damaged:
        more = f" and {len(report.damaged) - 1} more" if len(report.damaged) > 1 else ""
        return f"The {what} read back from the disk is not {target}: {report.damaged[0]}{more} differs."
    if not compared.largest <= TOLERANCE:
        return (f"The {what} read back from the disk does not answer like {target}: its logits differ by up to "
                f"{compared.largest:.2g}, allowed are {TOLERANCE:g}.")
    return (f"The {what} was read back from the disk and equals {target}: every number in its files is right and its "
            f"logits differ by at most {compared.largest:.2g}, allowed are {TOLERANCE:g}.")
