"""Which way to compute the loss suits a model: the fast one where it gives the same, else the plain one."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from core.data.batching import Batch, pack, pad
from core.data.row_store import row_lengths
from core.data.template import EncodedRow
from core.errors import CoreError
from core.estimate import pack_tokens
from core.training.loss import SummedLoss, chunked_loss, direct_loss
from core.training.segments import segmented_attention
from core.training.shared_prefix import compute_prefix, shared_length

_log = logging.getLogger(__name__)
_PROBE_ROWS = 2
_PROBE_TOKENS = 16  # few: this is waited for


class ComputingPath(NamedTuple):
    """How the loss of a step is computed: by what, in which batches, whether these are packed rows, and if not, why.

    shares: what rows begin with in common may be computed once.
    """

    summed_loss: SummedLoss
    batches: Callable[[Sequence[EncodedRow]], list[Batch]]
    packed: bool
    reason: str
    shares: bool = False


def choose_path(model: PreTrainedModel, rows: Sequence[EncodedRow], packing: str, device: torch.device,
                share: bool = True) -> ComputingPath:
    """Use packed rows and the chunked loss where this model computes the same with them.

    Two short rows are run in the plain way and then in the fast way; the sums of the losses must agree. With
    `share`, so must those of rows that go on from a common beginning. Leaves the model in evaluation mode:
    dropout would make the two ways differ.
    """
    pads = partial(pad, limit=pack_tokens(device.type == "cuda"))
    probe = probe_rows(rows)
    model.eval()
    with torch.no_grad():
        whole = _value(direct_loss, model, pad(probe)[0].to(device))
        if packing != "off" and share and _shares(chunked_loss, model, probe, whole, device):
            return fast_path(device, shares=True)  # all at once, as nearly always
        loss: SummedLoss = chunked_loss
        packed = packing != "off" and _packs(loss, model, probe, whole, device)
        reasons = []
        if not packed and not _agrees(lambda: _value(loss, model, pad(probe)[0].to(device)), whole, model.dtype):
            loss = direct_loss
            reasons.append("the output layer of this model is computed the plain way, with more memory")
            packed = packing != "off" and _packs(loss, model, probe, whole, device)
        shares = packed and share and loss is direct_loss and _shares(loss, model, probe, whole, device)
    if packing == "on" and not packed:
        raise CoreError("Packing is on, but this model can not keep packed rows apart exactly.",
                        "Set packing to auto or off.")
    if packing != "off" and not packed:
        reasons.append("rows are padded, as packed rows would not be kept apart exactly in this model")
    if packed and share and not shares:
        reasons.append(_why_not_shared(model, probe))
    batches = fast_path(device, shares).batches if packed else pads
    return ComputingPath(loss, batches, packed, _sentence(reasons), shares)


def fast_path(device: torch.device, shares: bool) -> ComputingPath:
    """Packed rows and the chunked loss."""
    return ComputingPath(chunked_loss, partial(pack, limit=pack_tokens(device.type == "cuda")), True, "", shares)


def _sentence(reasons: Sequence[str]) -> str:
    words = "; ".join(filter(None, reasons))
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _packs(loss: SummedLoss, model: PreTrainedModel, probe: Sequence[EncodedRow], expected: float,
           device: torch.device) -> bool:
    """True where packed rows have the loss that they have alone."""
    with segmented_attention(model):
        return _agrees(lambda: _value(loss, model, pack(probe)[0].to(device)), expected, model.dtype)


def _shares(loss: SummedLoss, model: PreTrainedModel, probe: Sequence[EncodedRow], expected: float,
            device: torch.device) -> bool:
    """True where the ends of the rows, packed behind their common beginning, have the loss of the whole rows.

    Rows are then kept apart as well.
    """
    length = shared_length(probe)
    if not length or _rotates_by_length(model):
        return False

    def compute() -> float:
        prefix = compute_prefix(model, probe, length, device)
        return sum(_value(loss, model, batch.to(device)) for batch in prefix.pack(probe))

    with segmented_attention(model):
        return _agrees(compute, expected, model.dtype)


def _why_not_shared(model: PreTrainedModel, probe: Sequence[EncodedRow]) -> str:
    """Why each row computes what all begin with; nothing where the probe has no beginning to ask with."""
    if not shared_length(probe):
        return ""
    cause = ("the positions of this model depend on the length of a row" if _rotates_by_length(model)
             else "this model would not go on from it exactly")
    return f"what rows begin with in common is computed in each of them, as {cause}"


def _rotates_by_length(model: PreTrainedModel) -> bool:
    """True where the rotary positions of a pass depend on its last position: a beginning alone has others."""
    found = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [found, *(value for value in found.values() if isinstance(value, dict))]  # some have one a kind of layer
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


def probe_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """A few short rows, alike in length and in their first half, on which two ways to compute the same are compared."""
    shortest = np.argsort(row_lengths(rows), kind="stable")[:_PROBE_ROWS].tolist()
    length = min(_PROBE_TOKENS, *(len(rows[number]) for number in shortest))
    return [_probe(rows[number], length, rows[shortest[0]]) for number in shortest]


def _probe(row: EncodedRow, length: int, first: EncodedRow) -> EncodedRow:
    """The last `length` tokens of a row, its first half that of `first`; what comes behind is supervised."""
    half = length // 2
    ids = np.concatenate([first.input_ids[-length:][:half], row.input_ids[-length:][half:]])
    supervised = np.arange(length) > half
    supervised[-1] = length > 1
    return replace(row, input_ids=ids, supervised=supervised)


def _value(loss: SummedLoss, model: PreTrainedModel, batch: Batch) -> float:
    return float(loss(model, batch))


def _agrees(compute: Callable[[], float], expected: float, dtype: torch.dtype) -> bool:
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    try:
        return abs(compute() - expected) <= tolerance * max(1.0, abs(expected))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        _log.info("the fast way does not suit this model: %r", error)  # it lacks what that needs
        return False
