"""The rows of a run: read, tokenised, split into training and validation by the seed."""

import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.config import DataConfig
from core.control import Control
from core.data.formats import Conversation, read_conversations
from core.data.row_cache import Summary, entry_lock, entry_path, find_entry, new_entry, write_summary
from core.data.row_store import RowWriter, StoredRows, read_digests
from core.data.source import Report, stop_at
from core.data.template import EncodedRow, RowEncoder
from core.errors import DataError
from core.events import Event, Progress, Warned

BATCH_ROWS = 256  # conversations tokenised at once
STAGE = "Preparing rows"


@dataclass(frozen=True)
class PreparedData:
    """Training and validation rows in the order of the files, and what was left out of them."""

    train: Sequence[EncodedRow]
    validation: Sequence[EncodedRow]
    dropped: int  # rows without a single token to learn
    cut: int  # rows cut at the limit
    largest_id: int  # of all tokens


def prepare_rows(data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int,
                 control: Control) -> Generator[Event, None, PreparedData]:
    """Read and tokenise all files; `prepared = yield from prepare_rows(...)`.

    The rows lie on the disk and are read when they are asked for; where they were made before, they
    are taken from there. Rows without a token to learn are left out and counted in one warning,
    rows that were cut in another.

    Raises:
        DataError: a file can not be read (file and line), or no row is left to learn from.
    """
    _require_files(data)
    encoder = RowEncoder(tokenizer, data.train_on, data.max_length)
    entry = entry_path(data, tokenizer, control)
    with entry_lock(entry, control):
        summary = find_entry(entry)
        if summary is None:
            summary = yield from _make_entry(entry, data, encoder, control)
    yield from _warnings(data, summary, encoder)
    train, validation = split(read_digests(entry), data.validation_fraction, seed)
    return PreparedData(StoredRows(entry, train), StoredRows(entry, validation), summary.dropped, summary.cut,
                        summary.largest_id)


def _make_entry(entry: Path, data: DataConfig, encoder: RowEncoder,
                control: Control) -> Generator[Event, None, Summary]:
    before = _signatures(data)
    dropped = cut = cut_to_nothing = 0
    with new_entry(entry) as folder:
        with RowWriter(folder) as writer:
            for conversations, progress in read_batches(data, control):
                yield progress
                for item in encoder.encode(conversations, writer.rows + dropped):
                    row = item.row
                    cut += row.cut
                    if row.supervised.any():
                        writer.add(row)
                    else:
                        dropped += 1
                        cut_to_nothing += row.cut
        if not writer.rows:
            raise nothing_to_learn(data, dropped, cut_to_nothing)
        if _signatures(data) != before:
            raise DataError("The training files were changed while their rows were read.", "Start again.")
        summary = Summary(writer.rows, dropped, cut, writer.largest_id)
        write_summary(folder, summary)
    return summary


def _signatures(data: DataConfig) -> list[tuple[int, int]]:
    return [(status.st_size, status.st_mtime_ns) for status in (Path(name).stat() for name in data.train)]


def _require_files(data: DataConfig) -> None:
    if not data.train:
        raise DataError("No training file is chosen.", "Choose a file on the Data page, or set data.train.")


def read_batches(data: DataConfig, control: Control,
                 report: Report = stop_at) -> Iterator[tuple[list[Conversation], Progress]]:
    """The conversations of all training files, in batches, and how far the files are read.

    Polls `control` between the batches. Rows that can not be used go to `report`.

    Raises:
        Cancelled: a stop was asked for.
        DataError: no file is chosen, or one can not be read.
    """
    _require_files(data)
    paths = [Path(name) for name in data.train]
    sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
    for number, path in enumerate(paths):
        rows = read_conversations(path, report)
        while batch := list(islice(rows, BATCH_ROWS)):
            control.check()
            read = sum(sizes[:number]) + min(batch[-1].offset, sizes[number])
            yield batch, Progress(STAGE, read, sum(sizes), "bytes")


def split(digests: NDArray[np.uint64], fraction: float,
          seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the training and of the validation rows, each rising.

    `fraction` of the rows, rounded, and at least one, is held out, where there are two different
    rows. Rows with the same tokens stay on the same side, so that nothing held out is also learned;
    because of them it may be a few rows less, or more where every row occurs many times. The same
    question with another answer may be on the other side. The same seed gives the same split. Both
    sides keep the order of the files.

    Args:
        digests: (n, 2), of the rows' tokens.
        fraction: of the rows, from 0 to 1.
        seed: of the shuffle.
    """
    group_of, sizes = _groups(digests)
    held_out = np.zeros(len(sizes), np.bool_)
    if fraction > 0 and len(sizes) > 1:
        wanted = max(1, round(fraction * len(digests)))
        order = list(range(len(sizes)))
        random.Random(seed).shuffle(order)  # noqa: S311 -- no secret
        members, held = sizes.tolist(), 0
        for group in order:
            if held + members[group] <= wanted:
                held_out[group] = True
                held += members[group]
        if not held:
            held_out[min(order, key=members.__getitem__)] = True
    chosen = held_out[group_of]
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _groups(digests: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The group of equal rows that each row belongs to (n,), and the sizes of the groups, in the order they come."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equal rows the first one is first
    arranged = digests[order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (arranged[1:] != arranged[:-1]).any(axis=1)
    number = np.argsort(np.argsort(order[begins]))
    group_of = np.empty(len(order), np.int64)
    group_of[order] = number[np.cumsum(begins) - 1]
    return group_of, np.bincount(group_of)


def nothing_to_learn(data: DataConfig, dropped: int, cut_to_nothing: int) -> DataError:
    """Why none of the `dropped` rows teaches anything; `cut_to_nothing` of them were cut at the limit."""
    if cut_to_nothing == dropped:
        return DataError(f"No row has a token to learn: the limit of {data.max_length} tokens cuts off every answer.",
                         "Raise the maximum length.")
    if cut_to_nothing:
        return DataError(f"No row has a token to learn: of {dropped} rows, {cut_to_nothing} lose their answer at the "
                         f"limit of {data.max_length} tokens and the others have no answer of the assistant.",
                         "Raise the maximum length and check the file on the Data page.")
    return DataError("No row has a token to learn: there is no answer of the assistant in the files.",
                     "Check the roles and columns of the file, or learn from all tokens instead of the answers.")


def _warnings(data: DataConfig, made: Summary, encoder: RowEncoder) -> Iterator[Event]:
    total = made.rows + made.dropped
    if made.dropped:
        yield Warned(f"{made.dropped} of {total} rows have no token to learn and are left out.",
                     "They have no answer, or the maximum length cuts it off.")
    if made.cut:
        yield Warned(f"{made.cut} of {total} rows are longer than {data.max_length} tokens and are cut at the end.",
                     "Raise the maximum length to keep them whole.")
    if not encoder.template.end_token:
        yield Warned("The tokenizer of this model has no end token, so the model may not learn where to stop.")
