"""What a dataset holds, and single rows as the model gets them: the jobs behind the Data page and check-data."""

from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from core.config import DataConfig
from core.control import Control
from core.data.formats import Conversation
from core.data.prepare import nothing_to_learn, read_batches
from core.data.template import RowEncoder, TokenisedRow
from core.errors import DataError
from core.events import DataScanned, Event, Note, Result, RowsPrepared, to_plain
from core.jobs import PreviewRows, ScanData
from core.models.library import resolve
from core.models.load import load_tokenizer
from core.records import Message, RowPreview, Token

PROBLEMS_LISTED = 20
HISTOGRAM_BINS = 40
PREVIEW_BYTES = 16 * 2**20  # of the files; the rows after them are not shown

Warm = dict[str, Any]  # what the engine keeps between jobs


def scan_dataset(job: ScanData, control: Control, warm: Warm | None = None) -> Iterator[Event]:
    """Measure the training files with the model's tokenizer -> DataScanned, Result.

    What is wrong with the files or their rows does not end the scan: it stands in
    `DataScanned.problems`, one sentence each, with file and line. A run would refuse each of them.

    Raises:
        ModelError: no such model, or one without a usable tokenizer.
        DataError: the model's chat template can not be used.
    """
    tokenizer = _warm_tokenizer(job.config.model.path, {} if warm is None else warm)
    scanned = yield from scan_rows(job.config.data, tokenizer, control)
    yield scanned
    values = to_plain(scanned)
    del values["event"]
    yield Result(values)


def scan_rows(data: DataConfig, tokenizer: PreTrainedTokenizerBase,
              control: Control) -> Generator[Event, None, DataScanned]:
    """The measuring part of `scan_dataset`, for a tokenizer that is loaded already."""
    encoder = RowEncoder(tokenizer, data.train_on, data.max_length)
    found = _Findings()
    try:
        for conversations, progress in read_batches(data, control, found.report):
            yield progress
            found.formats.update(dict.fromkeys(conversation.format for conversation in conversations))
            for item in encoder.encode(conversations, report=found.report):
                found.add(item)
    except DataError as error:
        found.report(error)
    return found.scanned(data)


class _Findings:
    """What a scan counts."""

    def __init__(self) -> None:
        self.formats: dict[str, None] = {}  # in the order in which they were met
        self._lengths = array("I")
        self._tokens = self._supervised = self._cut = self._without = self._cut_to_nothing = 0
        self._problems: list[str] = []
        self._more = 0

    def report(self, error: DataError) -> None:
        """Note a row or file that can not be used."""
        if len(self._problems) < PROBLEMS_LISTED:
            self._problems.append(f"{error.message} {error.hint}".strip())
        else:
            self._more += 1

    def add(self, item: TokenisedRow) -> None:
        """Count a row."""
        row = item.row
        supervised = int(row.supervised.sum())
        self._lengths.append(row.length)
        self._tokens += len(row)
        self._supervised += supervised
        self._cut += row.cut
        self._without += supervised == 0
        self._cut_to_nothing += row.cut and supervised == 0

    def scanned(self, data: DataConfig) -> DataScanned:
        """The event."""
        lengths = np.frombuffer(self._lengths, np.uint32) if self._lengths else np.zeros(0, np.uint32)
        longest = int(lengths.max(initial=0))
        counts = np.histogram(lengths, bins=HISTOGRAM_BINS, range=(0, max(longest, 1)))[0]
        problems = list(self._problems)
        if self._more:
            problems.append(f"{self._more} more rows can not be used.")
        if len(lengths) and not self._supervised:
            error = nothing_to_learn(data, self._without, self._cut_to_nothing)
            problems.append(f"{error.message} {error.hint}")
        return DataScanned(
            files=data.train, format=", ".join(self.formats), rows=len(lengths), tokens=self._tokens,
            supervised_tokens=self._supervised, rows_cut=self._cut, rows_without_supervision=self._without,
            longest=longest, length_counts=tuple(int(count) for count in counts), problems=tuple(problems))


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
    key = (_signatures(data.train), _signature(resolve(job.config.model.path)), data.max_length, data.train_on)
    if warm.get("data.rows", (None,))[0] != key:
        table = yield from _read_table(data, tokenizer, control)
        warm["data.rows"] = (key, table)
    table: _Table = warm["data.rows"][1]
    if table.shortened:
        yield Note(f"The preview shows the rows in the first {PREVIEW_BYTES // 2**20} MB.")
    numbers = table.matching(job.search)
    chosen = numbers[max(0, job.first):max(0, job.first) + max(0, job.count)]
    yield RowsPrepared(len(numbers), tuple(table.preview(number) for number in chosen))
    yield Result({"total_rows": len(numbers)})


class _Table:
    """The conversations of the files; a long text stands for several rows, its pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> None:
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
        """One row for showing. A row that the chat template refuses has no tokens."""
        position = bisect_right(self._first_rows, number) - 1
        conversation = self._conversations[position]
        items = self._encoder.encode([conversation], report=lambda error: None)
        if not items:
            return RowPreview(number, conversation.messages, (), cut=False)
        item = items[number - self._first_rows[position]]
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


def _read_table(data: DataConfig, tokenizer: PreTrainedTokenizerBase,
                control: Control) -> Generator[Event, None, _Table]:
    table = _Table(tokenizer, data)
    for conversations, progress in read_batches(data, control, report=lambda error: None):
        yield progress
        table.add(conversations)
        if progress.done > PREVIEW_BYTES and progress.done < progress.total:
            table.shortened = True
            break
    return table


def _warm_tokenizer(model: str, warm: Warm) -> PreTrainedTokenizerBase:
    path = resolve(model)
    key = _signature(path)
    if warm.get("data.tokenizer", (None,))[0] != key:
        warm["data.tokenizer"] = (key, load_tokenizer(path))
    return warm["data.tokenizer"][1]


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
