"""What the frozen layers below the lowest trained one give, kept on the disk from the first epoch for the later ones.

The states of a row are those that its pack of the first epoch gives, whenever they are computed: rounding depends
on what else is in a pack, so a run that was killed and goes on in a later epoch computes that same pack once more,
and ends with the same adapter bit for bit.
"""

import contextlib
import errno
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from core import files
from core.data.batching import Batch
from core.data.template import EncodedRow
from core.events import Event, Note
from core.training.frozen_part import FrozenPart
from core.training.loss import SummedLoss

_Outcome = TypeVar("_Outcome")
BatchesOf = Callable[[int], Sequence[Batch]]


class FrozenCache:
    """A summed loss that runs the frozen part only once for each row.

    Args:
        part: what is frozen.
        plain: the summed loss of the whole model.
        store: where the states are kept.
        first_steps: by `EncodedRow.index`, the step (from 0) of the first epoch that has the row; -1: a row that
            is in the same batch at all times (a validation row).
        batches_of: the batches of a step.
    """

    def __init__(self, part: FrozenPart, plain: SummedLoss, store: "RowStore", first_steps: NDArray[np.int64],
                 batches_of: BatchesOf) -> None:
        self._part = part
        self._plain = plain
        self._store = store
        self._first_steps = first_steps
        self._batches_of = batches_of
        self._gone = False  # the disk failed
        self._notes: list[Note] = []

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """As `SummedLoss`; where the disk fails, all is computed from then on."""
        if self._gone:
            return self._plain(model, batch)
        try:
            states = self._states(batch)
        except OSError as error:
            self._give_up(error)
            return self._plain(model, batch)
        with self._part.given(states):
            return self._plain(model, batch)

    def telling(self, events: Generator[Event, None, _Outcome]) -> Generator[Event, None, _Outcome]:
        """`events`, with what the cache has to say behind the one during which it happened."""
        with contextlib.closing(events):
            while True:
                try:
                    event = next(events)
                except StopIteration as end:
                    return end.value
                yield event
                yield from self._told()

    def _told(self) -> Iterator[Event]:
        while self._notes:
            yield self._notes.pop()

    def _states(self, batch: Batch) -> Tensor:
        """(B, T, d) of `batch`; zero where it is padded, which no token of a row ever sees."""
        self._store.require_room()
        states = torch.zeros(*batch.input_ids.shape, self._part.width, dtype=self._part.dtype)
        for row, place in _places(batch):
            if not self._store.has(row.index):
                self._fill(row, batch)
            self._store.read(row.index, states[place])
        return states.to(batch.input_ids.device)

    def _fill(self, row: EncodedRow, batch: Batch) -> None:
        """Compute and keep the states of `row` and of those that are with it in the first epoch."""
        step = int(self._first_steps[row.index])
        home = batch
        if step >= 0:
            home = next(item for item in self._batches_of(step) if any(row.index == each.index for each in item.rows))
        states = self._part.states(home.to(batch.input_ids.device)).cpu()
        for each, place in _places(home):
            if not self._store.has(each.index):
                self._store.write(each.index, states[place])

    def _give_up(self, error: OSError) -> None:
        self._gone = True
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else f"the disk can not be used ({error.strerror or error})"
        self._notes.append(Note(f"The output of the frozen layers is computed anew from here on, as {reason}."))
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._store.close()


def _places(batch: Batch) -> Iterator[tuple[EncodedRow, tuple[int, slice]]]:
    """Every row of `batch` and where in (B, T) its tokens are."""
    for number, row in enumerate(batch.rows):
        if batch.boundaries:
            yield row, (0, slice(batch.boundaries[number], batch.boundaries[number + 1]))
        else:
            yield row, (number, slice(0, len(row)))


class RowStore:
    """States of rows in one file without a name, exactly as they were computed.

    Args:
        folder: on the disk that holds it.
        rows: one more than the largest index of a row.
        reserve: bytes of the disk that others may need.
    """

    def __init__(self, folder: Path, rows: int, reserve: int) -> None:
        self._folder = folder
        self._reserve = reserve
        self._starts = np.full(rows, -1, np.int64)  # where in the file a row begins
        self._end = 0
        self._file: IO[bytes] | None = None

    def has(self, index: int) -> bool:
        """True where the states of this row are kept."""
        return self._starts[index] >= 0

    def require_room(self) -> None:
        """Raises OSError where others may soon lack the space that this takes."""
        if files.free_bytes(self._folder) < self._reserve:
            raise OSError(errno.ENOSPC, "the disk is full")

    def write(self, index: int, states: Tensor) -> None:
        """Keep (n, d) `states`. Raises OSError, and the row is then not kept."""
        if self._file is None:
            self._file = files.unnamed_file(self._folder)
        content = _bytes_of(states.contiguous())
        self._file.seek(self._end)
        done = 0
        while done < len(content):  # a nearly full disk takes a part, and refuses only the next one
            done += self._file.write(content[done:])
        self._starts[index] = self._end
        self._end += done

    def read(self, index: int, into: Tensor) -> None:
        """Fill (n, d) `into`, which is contiguous, with what was written. Raises OSError."""
        assert self._file is not None and self.has(index)
        content = _bytes_of(into)
        self._file.seek(int(self._starts[index]))
        done = 0
        while done < len(content):
            got = self._file.readinto(content[done:])  # type: ignore[attr-defined] -- a raw file has it
            if not got:
                raise OSError(errno.EIO, "the file ends too soon")
            done += got

    def close(self) -> None:
        """Give the space back."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._starts.fill(-1)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    assert tensor.is_contiguous()
    return tensor.view(torch.uint8).numpy().data.cast("B")
