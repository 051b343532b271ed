"""From prepared rows to what one forward pass takes: the order of rows, packing, padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.template import EncodedRow
from core.estimate import PACK_TOKENS


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass. B is 1 where rows are packed end to end.

    Shapes: input_ids and position_ids (B, T); attention_mask (B, T) or None where packed;
    predicting (S,) indices into the flattened B*T positions whose next token is supervised;
    labels (S,) those next tokens. boundaries: start of each packed row and the end, (rows + 1). rows: in
    their order in the batch; row b is at [b, :len(row)] where padded, at [0, boundaries[b]:] where packed.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    predicting: Tensor
    labels: Tensor
    boundaries: tuple[int, ...]
    tokens: int  # without padding
    rows: tuple[EncodedRow, ...]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return Batch(self.input_ids.to(device), self.position_ids.to(device), mask,
                     self.predicting.to(device), self.labels.to(device), self.boundaries, self.tokens, self.rows)


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


def pack(rows: Sequence[EncodedRow], limit: int = PACK_TOKENS) -> list[Batch]:
    """Lay rows end to end into batches of at most `limit` tokens (or one row), keeping their order."""
    groups: list[list[EncodedRow]] = []
    filled = 0
    for row in rows:
        length = len(row.input_ids)
        if not groups or filled + length > limit:
            groups.append([])
            filled = 0
        groups[-1].append(row)
        filled += length
    return [_packed(group) for group in groups]


def _packed(rows: list[EncodedRow]) -> Batch:
    lengths = [len(row.input_ids) for row in rows]
    boundaries = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([np.asarray(row.input_ids, dtype=np.int64) for row in rows])
    positions = np.concatenate([np.arange(length) for length in lengths])
    # supervised[0] of every row is False, so a row is never predicted from the row before it
    supervised = np.concatenate([np.asarray(row.supervised, dtype=bool) for row in rows])
    predicted = np.flatnonzero(supervised)
    return Batch(torch.from_numpy(ids)[None], torch.from_numpy(positions)[None], None,
                 torch.from_numpy(predicted - 1), torch.from_numpy(ids[predicted]),
                 tuple(boundaries.tolist()), len(ids), tuple(rows))


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
