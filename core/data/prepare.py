"""The rows of a run: read, tokenised, split into training and validation by the seed."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from core.config import DataConfig
from core.control import Control
from core.data.formats import Conversation, read_conversations
from core.data.source import Report, stop_at
from core.data.template import EncodedRow, RowEncoder
from core.errors import DataError
from core.events import Event, Progress, Warned

BATCH_ROWS = 256  # conversations tokenised at once
STAGE = "Preparing rows"


@dataclass(frozen=True)
class PreparedData:
    """Training and validation rows in the order of the files, and what was left out of them."""

    train: tuple[EncodedRow, ...]
    validation: tuple[EncodedRow, ...]
    dropped: int  # rows without a single token to learn
    cut: int  # rows cut at the limit


def prepare_rows(data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int,
                 control: Control) -> Generator[Event, None, PreparedData]:
    """Read and tokenise all files; `prepared = yield from prepare_rows(...)`.

    Rows without a token to learn are left out and counted in one warning, rows that were cut in
    another.

    Raises:
        DataError: a file can not be read (file and line), or no row is left to learn from.
    """
    encoder = RowEncoder(tokenizer, data.train_on, data.max_length)
    rows: list[EncodedRow] = []
    dropped = cut = cut_to_nothing = 0
    for conversations, progress in read_batches(data, control):
        yield progress
        for item in encoder.encode(conversations, len(rows) + dropped):
            row = item.row
            cut += row.cut
            if row.supervised.any():
                rows.append(row)
            else:
                dropped += 1
                cut_to_nothing += row.cut
    if not rows:
        raise nothing_to_learn(data, dropped, cut_to_nothing)
    yield from _warnings(data, len(rows), dropped, cut, encoder)
    train, validation = split(rows, data.validation_fraction, seed)
    return PreparedData(tuple(train), tuple(validation), dropped, cut)


def read_batches(data: DataConfig, control: Control,
                 report: Report = stop_at) -> Iterator[tuple[list[Conversation], Progress]]:
    """The conversations of all training files, in batches, and how far the files are read.

    Polls `control` between the batches. Rows that can not be used go to `report`.

    Raises:
        Cancelled: a stop was asked for.
        DataError: no file is chosen, or one can not be read.
    """
    if not data.train:
        raise DataError("No training file is chosen.", "Choose a file on the Data page, or set data.train.")
    paths = [Path(name) for name in data.train]
    sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
    for number, path in enumerate(paths):
        rows = read_conversations(path, report)
        while batch := list(islice(rows, BATCH_ROWS)):
            control.check()
            read = sum(sizes[:number]) + min(batch[-1].offset, sizes[number])
            yield batch, Progress(STAGE, read, sum(sizes), "bytes")


def split(rows: list[EncodedRow], fraction: float, seed: int) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """Training and validation rows.

    `fraction` of the rows, rounded, and at least one, is held out, where there are two different
    rows. Rows with the same tokens stay on the same side, so that nothing held out is also learned;
    because of them it may be a few rows less, or more where every row occurs many times. The same
    question with another answer may be on the other side. The same seed gives the same split. Both
    sides keep the order of the files.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[hashlib.blake2b(row.input_ids.tobytes(), digest_size=16).digest()].append(number)
    if fraction <= 0 or len(groups) < 2:
        return list(rows), []
    wanted = max(1, round(fraction * len(rows)))
    order = list(groups.values())
    random.Random(seed).shuffle(order)  # noqa: S311 -- no secret
    held_out: set[int] = set()
    for members in order:
        if len(held_out) + len(members) <= wanted:
            held_out.update(members)
    if not held_out:
        held_out.update(min(order, key=len))
    return ([row for number, row in enumerate(rows) if number not in held_out],
            [row for number, row in enumerate(rows) if number in held_out])


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


def _warnings(data: DataConfig, kept: int, dropped: int, cut: int, encoder: RowEncoder) -> Iterator[Event]:
    if dropped:
        yield Warned(f"{dropped} of {kept + dropped} rows have no token to learn and are left out.",
                     "They have no answer, or the maximum length cuts it off.")
    if cut:
        yield Warned(f"{cut} of {kept + dropped} rows are longer than {data.max_length} tokens and are cut at the end.",
                     "Raise the maximum length to keep them whole.")
    if not encoder.template.end_token:
        yield Warned("The tokenizer of this model has no end token, so the model may not learn where to stop.")



