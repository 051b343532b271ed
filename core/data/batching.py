"""From prepared rows to what one forward pass takes: the order of rows, packing, padding."""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.template import EncodedRow
from core.estimate import PACK_TOKENS

# What a row takes beside its own tokens where its beginning is computed elsewhere, as parts of what a token keeps in
# a layer: a copy of a key and a value of the beginning (at most, where every head has its own), an entry of the mask.
_COPY_PART = 8
_MASK_PART = 10_000


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass. B is 1 where rows are packed end to end.

    Shapes: input_ids and position_ids (B, T); attention_mask (B, T) or None where packed;
    predicting (S,) indices into the flattened B*T positions whose next token is supervised;
    labels (S,) those next tokens. boundaries: start of each packed row and the end, (rows + 1). rows: in
    their order in the batch; row b is at [b, :len(row)] where padded; where packed, what of it is computed
    is at [0, boundaries[b]:boundaries[b + 1]].
    given: what the model is called with besides.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    predicting: Tensor
    labels: Tensor
    boundaries: tuple[int, ...]
    tokens: int  # of the whole rows, without padding
    rows: tuple[EncodedRow, ...]
    given: Mapping[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return replace(self, input_ids=self.input_ids.to(device), position_ids=self.position_ids.to(device),
                       attention_mask=mask, predicting=self.predicting.to(device), labels=self.labels.to(device))


@lru_cache(maxsize=2)  # every step of an epoch asks for it
def epoch_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch visits the rows (n,); a pure function, so a resumed run needs no state."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    order.flags.writeable = False  # every caller is given the same one
    return order


def step_rows(step: int, rows: int, rows_per_step: int, seed: int) -> tuple[int, ...]:
    """Indices of the rows of `step` (from 0). The last step of an epoch may have fewer."""
    steps_per_epoch = -(-rows // rows_per_step)
    epoch, position = divmod(step, steps_per_epoch)
    return tuple(epoch_order(rows, seed, epoch)[position * rows_per_step:(position + 1) * rows_per_step].tolist())


def pack(rows: Sequence[EncodedRow], limit: int = PACK_TOKENS, skipped: int = 0,
         given: Mapping[str, Any] | None = None) -> list[Batch]:
    """Lay rows end to end into few batches of at most `limit` tokens (or one row).

    A pass costs something however short it is: each row goes, the longest first, to the fullest batch that has room
    (best fit decreasing). The sum of the losses does not depend on the order. From the last supervised token of a row
    on, nothing more is predicted, so these tokens are left out.

    Args:
        rows: at least one.
        limit: most tokens of a batch.
        skipped: so many tokens at the beginning of every row are left out, too; none of them predicts anything.
        given: see `Batch`.
    """
    groups = _best_fit([_room(used_tokens(row) - skipped, skipped) for row in rows], limit)
    return [_packed([rows[index] for index in group], skipped, given or {}) for group in groups]


def _best_fit(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of `lengths` in groups whose sums are at most `limit` (or one length)."""
    groups: list[list[int]] = []
    room: list[tuple[int, int]] = []  # of a group and its number, the least room first
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(room, (lengths[index], 0))
        free, number = room.pop(place) if place < len(room) else (limit, len(groups))
        if number == len(groups):
            groups.append([])
        groups[number].append(index)
        insort(room, (free - lengths[index], number))
    return sorted(sorted(group) for group in groups)


def _room(own: int, skipped: int) -> int:
    """The memory that a row takes in a pass, in tokens."""
    return own + skipped // _COPY_PART + own * (own + skipped) // _MASK_PART if skipped else own


def used_tokens(row: EncodedRow) -> int:
    """How many tokens of a row something is predicted from; all of them where nothing is supervised."""
    supervised = np.flatnonzero(row.supervised)
    return int(supervised[-1]) if len(supervised) else len(row)


def _packed(rows: list[EncodedRow], skipped: int, given: Mapping[str, Any]) -> Batch:
    parts = [slice(skipped, used_tokens(row)) for row in rows]
    boundaries = np.concatenate([[0], np.cumsum([part.stop - part.start for part in parts])])
    ids, positions, predicting, labels = (np.concatenate(each).astype(np.int64) for each in zip(*(
        (row.input_ids[part], np.arange(part.start, part.stop), np.flatnonzero(row.supervised) - 1 - skipped + start,
         row.input_ids[row.supervised])
        for row, part, start in zip(rows, parts, boundaries[:-1], strict=True)), strict=True))
    return Batch(torch.from_numpy(ids)[None], torch.from_numpy(positions)[None], None, torch.from_numpy(predicting),
                 torch.from_numpy(labels), tuple(boundaries.tolist()), sum(map(len, rows)), tuple(rows), given)


def pad(rows: Sequence[EncodedRow], limit: int = PACK_TOKENS) -> list[Batch]:
    """Rows side by side, padded at the end, in batches of at most `limit` positions (or one row).

    Rows of like length stand together; the sum of the losses does not depend on the order.
    """
    groups: list[list[EncodedRow]] = []
    for row in sorted(rows, key=lambda row: len(row.input_ids)):
        if not groups or (len(groups[-1]) + 1) * len(row.input_ids) > limit:
            groups.append([])
        groups[-1].append(row)
    return [_padded(group) for group in groups]


def _padded(rows: list[EncodedRow]) -> Batch:
    width = max(len(row.input_ids) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    supervised = np.zeros(ids.shape, dtype=bool)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length] = row.input_ids
        mask[index, :length] = 1
        supervised[index, :length] = row.supervised
    predicted = np.flatnonzero(supervised)
    positions = np.broadcast_to(np.arange(width), ids.shape).copy()
    return Batch(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(mask),
                 torch.from_numpy(predicted - 1), torch.from_numpy(ids.reshape(-1)[predicted]),
                 (), int(mask.sum()), tuple(rows))
