"""What a dataset holds, and single rows as the model gets them: the jobs behind the Data page and check-data."""

import math
import time
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.config import DataConfig, RunConfig
from core.control import Control
from core.data.formats import Conversation
from core.data.outline import Outline, RowIndex, outline_files
from core.data.prepare import STAGE, nothing_to_learn, read_batches
from core.data.template import RowEncoder, TokenisedRow
from core.errors import DataError
from core.events import DataScanned, Event, Note, Progress, Result, RowsPrepared, to_plain
from core.jobs import PreviewRows, ScanData
from core.models.library import resolve
from core.models.load import load_tokenizer
from core.records import Message, RowPreview, Token

PROBLEMS_LISTED = 20
HISTOGRAM_BINS = 40
EXACT_BYTES = 8 * 2**20  # of files; of more, a sample is tokenised
SAMPLE_BATCH = 64  # rows of it tokenised at once
PREVIEW_BYTES = 16 * 2**20  # of the files; the rows after them are not searched, nor shown until a scan has found them
FIRST_BYTES = 2**20  # of larger files, enough to begin with

Warm = dict[str, Any]  # what the engine keeps between jobs


def scan_dataset(job: ScanData, control: Control, warm: Warm | None = None) -> Iterator[Event]:
    """Measure the training files with the model's tokenizer -> DataScanned, Result.

    What is wrong with the files or their rows does not end the scan: it stands in
    `DataScanned.problems`, one sentence each, with file and line. A run would refuse each of them.
    Of more than EXACT_BYTES all rows are read and checked, but a sample is tokenised.

    After `job.seconds` the scan ends with what it has so far (`DataScanned.measured` is below 1);
    the same job, asked again of the same `warm`, goes on from there.

    Raises:
        ModelError: no such model, or one without a usable tokenizer.
        DataError: the model's chat template can not be used.
    """
    warm = {} if warm is None else warm
    data, end = job.config.data, time.monotonic() + (job.seconds or math.inf)
    tokenizer = _warm_tokenizer(job.config.model.path, warm)
    key = _data_key(job.config)
    kept, warm["data.scan"] = warm.get("data.scan"), None  # not to be gone on with if this raises
    scan = kept[1] if kept and kept[0] == key else _Scan(data, tokenizer)
    for progress in scan.steps:
        yield progress
        control.check()
        if time.monotonic() >= end:
            warm["data.scan"] = (key, scan)
            break
    else:
        scan.measured = 1.0
        warm["data.index"] = (_signatures(data.train), scan.offsets)
    scanned = scan.scanned()
    yield scanned
    values = to_plain(scanned)
    del values["event"]
    yield Result(values)


class _Scan:
    """A scan that can be left and gone on with: take `steps` to their end."""

    def __init__(self, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.measured = 0.0
        self._data = data
        self._encoder = RowEncoder(tokenizer, data.train_on, data.max_length)
        self._found = _Findings()
        sizes = [file.stat().st_size for file in map(Path, data.train) if file.is_file()]
        self._bytes = sum(sizes)
        self._outline = Outline() if self._bytes > EXACT_BYTES else None
        self.steps = self._tolerant(self._all() if self._outline is None else self._part(self._outline))

    @property
    def offsets(self) -> list[tuple[Path, NDArray[np.int64]]] | None:
        """Where the rows of each file begin, once all are read; None where that is not enough to find a row."""
        if self._outline is None or self._outline.has_texts:
            return None
        offsets = [(Path(name), self._outline.offsets.get(Path(name))) for name in self._data.train]
        return [(file, begins) for file, begins in offsets if begins is not None] \
            if all(begins is not None for _, begins in offsets) else None

    def scanned(self) -> DataScanned:
        """What is known so far."""
        return self._found.scanned(self._data, self._outline, self.measured)

    def _tolerant(self, steps: Iterator[Progress]) -> Iterator[Progress]:
        try:
            for progress in steps:
                self.measured = min(progress.done / max(progress.total, 1), 0.999)
                yield progress
        except DataError as error:
            self._found.report(error)

    def _all(self) -> Iterator[Progress]:
        """Tokenise every row."""
        for conversations, progress in read_batches(self._data, Control(), self._found.report):
            self._found.formats.update(dict.fromkeys(conversation.format for conversation in conversations))
            for item in self._encoder.encode(conversations, report=self._found.report):
                self._found.add(item)
            yield progress

    def _part(self, outline: Outline) -> Iterator[Progress]:
        """Read every row, then tokenise the sample."""
        self._found.formats = outline.formats
        for read in outline_files(self._data.train, outline, self._found.report):
            yield Progress(STAGE, read, self._bytes, "bytes")
        special = {(kept.file, kept.line): kept for kept in outline.special}
        for kept in outline.spread:
            special.pop((kept.file, kept.line), None)
        for rows, counts in ((outline.spread, True), (list(special.values()), False)):
            for first in range(0, len(rows), SAMPLE_BATCH):
                chosen = rows[first:first + SAMPLE_BATCH]
                for item in self._encoder.encode([part for kept in chosen for part in kept.conversations()],
                                                 report=self._found.report):
                    self._found.add(item, counts=counts)
                self._found.sampled += len(chosen) if counts else 0
                yield Progress(STAGE, self._bytes, self._bytes, "bytes")


class _Findings:
    """What a scan counts."""

    def __init__(self) -> None:
        self.formats: dict[str, None] = {}  # in the order in which they were met
        self._lengths = array("I")
        self._tokens = self._supervised = self._cut = self._without = self._cut_to_nothing = 0
        self._longest = 0
        self._problems: list[str] = []
        self._more = 0
        self.sampled = 0  # of the rows that an outline kept, those that were tokenised

    def report(self, error: DataError) -> None:
        """Note a row or file that can not be used."""
        if len(self._problems) < PROBLEMS_LISTED:
            self._problems.append(f"{error.message} {error.hint}".strip())
        else:
            self._more += 1

    def add(self, item: TokenisedRow, *, counts: bool = True) -> None:
        """Count a row; one that does not count only tells how long rows can be."""
        row = item.row
        self._longest = max(self._longest, row.length)
        if not counts:
            return
        supervised = int(row.supervised.sum())
        self._lengths.append(row.length)
        self._tokens += len(row)
        self._supervised += supervised
        self._cut += row.cut
        self._without += supervised == 0
        self._cut_to_nothing += row.cut and supervised == 0

    def scanned(self, data: DataConfig, outline: Outline | None, measured: float) -> DataScanned:
        """The event. With an outline, its sample stands for all rows that were read."""
        lengths = np.frombuffer(self._lengths, np.uint32) if self._lengths else np.zeros(0, np.uint32)
        counts = np.histogram(lengths, bins=HISTOGRAM_BINS, range=(0, max(self._longest, 1)))[0]
        problems = list(self._problems)
        if self._more:
            problems.append(f"{self._more} more rows can not be used.")
        if len(lengths) and not self._supervised:
            error = nothing_to_learn(data, self._without, self._cut_to_nothing)
            problems.append(f"{error.message} {error.hint}")
        scale = outline.rows / max(self.sampled, 1) if outline is not None else 1
        rows = len(lengths) if outline is None else outline.rows
        if outline is not None and outline.has_texts and self.sampled:
            rows = round(scale * len(lengths))  # a text may become several
        return DataScanned(
            files=data.train, format=", ".join(self.formats), rows=rows, tokens=round(scale * self._tokens),
            supervised_tokens=round(scale * self._supervised), rows_cut=round(scale * self._cut),
            rows_without_supervision=round(scale * self._without), longest=self._longest,
            length_counts=tuple(round(scale * int(count)) for count in counts), problems=tuple(problems),
            sampled=len(lengths) if outline is not None else 0, measured=measured)


def preview_rows(job: PreviewRows, control: Control, warm: Warm | None = None) -> Iterator[Event]:
    """Rows as conversations and as tokens, with what is learned in them -> RowsPrepared, Result.

    Rows that can not be used are left out here; the scan names them.

    Raises:
        ModelError: no such model, or one without a usable tokenizer.
        DataError: a file can not be read at all.
    """
    warm = {} if warm is None else warm
    data = job.config.data
    tokenizer = _warm_tokenizer(job.config.model.path, warm)
    key = _data_key(job.config)
    whole = bool(job.search.strip()) or sum(max(size, 0) for _, size, _ in key[0]) <= PREVIEW_BYTES
    limit = PREVIEW_BYTES if whole else min(FIRST_BYTES, PREVIEW_BYTES)
    if warm.get("data.rows", (None,))[0] != key or warm["data.rows"][1].limit < limit:
        table = yield from _read_table(_Table(tokenizer, data, limit), data, control)
        warm["data.rows"] = (key, table)
    table: _Table = warm["data.rows"][1]
    signatures, offsets = warm.get("data.index") or (None, None)
    if table.shortened and not job.search.strip() and offsets and signatures == key[0]:
        rows = RowIndex(offsets)
        numbers = range(len(rows))[max(0, job.first):max(0, job.first) + max(0, job.count)]
        yield RowsPrepared(len(rows), tuple(table.preview_of(number, rows.conversation(number)) for number in numbers))
        yield Result({"total_rows": len(rows)})
        return
    if table.shortened:
        yield Note(f"The preview shows the rows in the first {table.limit // 2**20} MB.")
    numbers = table.matching(job.search)
    chosen = numbers[max(0, job.first):max(0, job.first) + max(0, job.count)]
    yield RowsPrepared(len(numbers), tuple(table.preview(number) for number in chosen))
    yield Result({"total_rows": len(numbers)})


class _Table:
    """The conversations of the files; a long text stands for several rows, its pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataConfig, limit: int) -> None:
        self.limit = limit  # bytes of the files to read
        self.shortened = False
        self._encoder = RowEncoder(tokenizer, data.train_on, data.max_length)
        self._train_on = data.train_on
        self._special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._tokenizer = tokenizer
        self._conversations: list[Conversation] = []
        self._first_rows: list[int] = []  # the number of each conversation's first row
        self._rows = 0

    def add(self, conversations: Sequence[Conversation]) -> None:
        """Append conversations; texts are tokenised to count their pieces."""
        pieces: dict[int, int] = {}
        texts = [conversation for conversation in conversations if conversation.is_text]
        for item in self._encoder.encode(texts):
            pieces[id(item.conversation)] = pieces.get(id(item.conversation), 0) + 1
        for conversation in conversations:
            self._conversations.append(conversation)
            self._first_rows.append(self._rows)
            self._rows += pieces.get(id(conversation), 0) if conversation.is_text else 1

    def matching(self, search: str) -> Sequence[int]:
        """The numbers of the rows that hold `search`, in any letter case; all of them for ""."""
        needle = search.strip().casefold()
        if not needle:
            return range(self._rows)
        numbers: list[int] = []
        for first, conversation in zip(self._first_rows, self._conversations, strict=True):
            if not any(needle in message.content.casefold() for message in conversation.messages):
                continue
            if conversation.is_text:
                pieces = self._encoder.encode([conversation])
                numbers += [first + place for place, item in enumerate(pieces) if needle in _text_of(item).casefold()]
            else:
                numbers.append(first)
        return numbers

    def preview(self, number: int) -> RowPreview:
        """One row for showing."""
        position = bisect_right(self._first_rows, number) - 1
        return self.preview_of(number, self._conversations[position], number - self._first_rows[position])

    def preview_of(self, number: int, conversation: Conversation, piece: int = 0) -> RowPreview:
        """A row, of a text one piece, for showing. A row that the chat template refuses has no tokens."""
        items = self._encoder.encode([conversation], report=lambda error: None)
        if not items:
            return RowPreview(number, conversation.messages, (), cut=False)
        item = items[piece]
        messages = conversation.messages
        if conversation.is_text:
            messages = (Message("text", _text_of(item), trained=True),)
        elif self._train_on == "all":
            messages = tuple(replace(message, trained=True) for message in messages)
        return RowPreview(number, messages, tuple(self._tokens(item)), item.row.cut)

    def _tokens(self, item: TokenisedRow) -> Iterator[Token]:
        """Each token's text as it stands in the row; of several tokens in one character the first has it."""
        end = 0
        for identity, trained, (first, last) in zip(
                item.row.input_ids.tolist(), item.row.supervised.tolist(), item.offsets.tolist(), strict=True):
            special = identity in self._special
            text = item.text[max(first, end):last]
            if special and not text:
                text = str(self._tokenizer.convert_ids_to_tokens(identity))
            end = max(end, last)
            yield Token(text, trained, special)


def _text_of(item: TokenisedRow) -> str:
    return item.text[item.offsets[0, 0]:item.offsets[-1, 1]]


def _read_table(table: _Table, data: DataConfig, control: Control) -> Generator[Event, None, _Table]:
    for conversations, progress in read_batches(data, control, report=lambda error: None):
        yield progress
        table.add(conversations)
        if progress.done > table.limit and progress.done < progress.total:
            table.shortened = True
            break
    return table


def _warm_tokenizer(model: str, warm: Warm) -> PreTrainedTokenizerBase:
    path = resolve(model)
    key = _signature(path)
    if warm.get("data.tokenizer", (None,))[0] != key:
        warm["data.tokenizer"] = (key, load_tokenizer(path))
    return warm["data.tokenizer"][1]


def _data_key(config: RunConfig) -> tuple[Any, ...]:
    """Changes when a scan would give something else; first what tells of the files."""
    data = config.data
    return _signatures(data.train), _signature(resolve(config.model.path)), data.max_length, data.train_on


def _signatures(files: Sequence[str]) -> tuple[Any, ...]:
    return tuple(_file_signature(Path(name)) for name in files)


def _signature(folder: Path) -> tuple[Any, ...]:
    """Changes when the tokenizer of a model folder does."""
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
    return tuple(_file_signature(folder / name) for name in names)


def _file_signature(file: Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except OSError:
        return str(file), -1, -1
    return str(file), status.st_size, status.st_mtime_ns
