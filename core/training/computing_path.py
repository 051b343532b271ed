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
from core.training.shared_prefix import compute_prefix

_log = logging.getLogger(__name__)
_PROBE_ROWS = 2
_PROBE_TOKENS = 32
_LEAST_PROBE_TOKENS = 4  # with fewer, nothing would be predicted behind the beginning


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

    A few short rows are run one by one in the plain way and then in the fast way; the sums of the
    losses must agree. With `share`, so must those of rows that go on from a common beginning. Leaves the
    model in evaluation mode: dropout would make the two ways differ.
    """
    limit = pack_tokens(device.type == "cuda")
    packs, pads = partial(pack, limit=limit), partial(pad, limit=limit)
    probe = probe_rows(rows)
    model.eval()
    with torch.no_grad():
        expected = [_value(direct_loss, model, batch.to(device)) for row in probe for batch in pad([row])]
        whole = sum(expected)
        if packing != "off" and _packs(chunked_loss, model, probe, whole, device):  # both at once, as nearly always
            return ComputingPath(chunked_loss, packs, True, "", share and _shares(chunked_loss, model, probe, device))
        loss: SummedLoss = direct_loss
        reasons = []
        if _agrees(lambda: _value(chunked_loss, model, pad(probe)[0].to(device)), whole, model.dtype):
            loss = chunked_loss
        else:
            reasons.append("the output layer of this model is computed the plain way, with more memory")
        if packing == "off":
            return ComputingPath(loss, pads, False, "")
        packed = _packs(loss, model, probe, whole, device)
        shares = packed and share and _shares(loss, model, probe, device)
    if not packed:
        if packing == "on":
            raise CoreError("Packing is on, but this model can not keep packed rows apart exactly.",
                            "Set packing to auto or off.")
        reasons.append("rows are padded, as packed rows would not be kept apart exactly in this model")
    return ComputingPath(loss, packs if packed else pads, packed, "; ".join(reasons).capitalize(), shares)


def _packs(loss: SummedLoss, model: PreTrainedModel, probe: Sequence[EncodedRow], expected: float,
           device: torch.device) -> bool:
    """True where packed rows have the loss that they have alone."""
    with segmented_attention(model):
        return _agrees(lambda: _value(loss, model, pack(probe)[0].to(device)), expected, model.dtype)


def _shares(loss: SummedLoss, model: PreTrainedModel, probe: Sequence[EncodedRow], device: torch.device) -> bool:
    """True where the rests of rows behind a common beginning have the loss of the whole rows."""
    longest = max(probe, key=len)
    length = len(longest) // 2
    if len(longest) < _LEAST_PROBE_TOKENS or _rotates_by_length(model):
        return False
    twins = [replace(longest, supervised=np.arange(len(longest)) > length)] * 2  # none before is predicted
    expected = _value(direct_loss, model, pad(twins)[0].to(device))

    def compute() -> float:
        prefix = compute_prefix(model, twins, length, device)
        return sum(_value(loss, model, batch.to(device)) for batch in prefix.pack(twins))

    with segmented_attention(model):
        return _agrees(compute, expected, model.dtype)


def _rotates_by_length(model: PreTrainedModel) -> bool:
    """True where the rotary positions of a pass depend on its last position: a beginning alone has others."""
    found = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [found, *(value for value in found.values() if isinstance(value, dict))]  # some have one a kind of layer
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


def probe_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """A few short rows, on which two ways to compute the same are compared."""
    shortest = np.argsort(row_lengths(rows), kind="stable")[:_PROBE_ROWS]
    return [_shortened(rows[number]) for number in shortest.tolist()]


def _shortened(row: EncodedRow) -> EncodedRow:
    """The last part of a row, which holds supervised tokens, as a short probe."""
    ids, supervised = row.input_ids[-_PROBE_TOKENS:], row.supervised[-_PROBE_TOKENS:].copy()
    supervised[0] = False
    supervised[-1] = len(ids) > 1
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
