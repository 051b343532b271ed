"""Every row of a large dataset is read and checked; a sample of them is kept to be tokenised.

A row of JSON lines that has the layout of an earlier good row and holds only texts is as good as that one. So most
rows are parsed and compared, and no conversation is made of them.
"""

import heapq
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.formats import (
    CALL_ROLES,
    CHAT,
    ROLES,
    SHARE_GPT,
    Conversation,
    parts,
    read_conversations,
    require_same_format,
    to_conversation,
)
from core.data.json_rows import MAX_DEPTH
from core.data.quick_json import UNSURE, quick_value
from core.data.readers import RawRow, detect_kind, json_row, numbered_lines
from core.data.source import ROW_LIMIT_BYTES, Report, Source, open_source
from core.errors import DataError

SAMPLE_ROWS = 1024  # at least so many of a larger dataset are tokenised, evenly spread; less than twice as many
SAMPLE_BYTES = 64 * 2**20  # of kept rows
LONGEST_ROWS = 8
LARGE_BYTES = 8 * 2**20
LAYOUTS = 64  # different sequences of roles or columns, of which the first row is kept
BLOCK_ROWS = 2048  # read between two reports of progress

_PLAIN_ROLES = frozenset(ROLES) - CALL_ROLES
_CHAT_COLUMNS = ("messages", "conversations", "conversation")
_CHAT_FORMATS = frozenset({SHARE_GPT, CHAT})
_NOT_PLAIN = frozenset({"history", "tools"})  # a text in these columns may be good or bad


@dataclass(frozen=True, slots=True)
class KeptRow:
    """A row to be made a conversation later."""

    file: Path
    line: int
    offset: int
    raw: bytes | Conversation

    def conversations(self) -> Iterator[Conversation]:
        """The row, or a long plain text in parts."""
        if isinstance(self.raw, Conversation):
            return parts(self.raw)
        return parts(_conversation(self.file, self.line, self.raw, self.offset))


class _Spread:
    """Every n-th row; n is doubled, and every other kept row dropped, whenever there are too many."""

    def __init__(self) -> None:
        self.rows: list[KeptRow] = []
        self.every = 1
        self._bytes = 0

    def add(self, row: KeptRow, size: int) -> None:
        """Keep a row."""
        self.rows.append(row)
        self._bytes += size
        if len(self.rows) >= 2 * SAMPLE_ROWS or (self._bytes > SAMPLE_BYTES and len(self.rows) > 1):
            self.rows = self.rows[::2]
            self._bytes //= 2
            self.every *= 2


@dataclass
class Outline:
    """What is known of the files so far."""

    rows: int = 0  # conversations and texts; a text may become several rows of a run
    read: int = 0  # bytes
    formats: dict[str, None] = field(default_factory=dict)  # in the order in which they were met
    has_texts: bool = False
    offsets: dict[Path, NDArray[np.int64]] = field(default_factory=dict)  # where good rows begin, for JSON lines
    _spread: _Spread = field(default_factory=_Spread)
    _layouts: dict[object, KeptRow] = field(default_factory=dict)
    _longest: list[tuple[int, int, KeptRow]] = field(default_factory=list)  # a heap

    @property
    def spread(self) -> list[KeptRow]:
        """Rows that stand for all others."""
        return self._spread.rows

    @property
    def special(self) -> list[KeptRow]:
        """The longest rows, and the first row of each layout."""
        return [*self._layouts.values(), *(kept for _, _, kept in self._longest)]

    def add(self, file: Path, line: int, offset: int, raw: bytes | Conversation, size: int, layout: object) -> None:
        """Count a good row."""
        if not self.rows % self._spread.every:
            self._spread.add(KeptRow(file, line, offset, raw), size)
        if size > LARGE_BYTES:
            layout = "large"
        if layout not in self._layouts and len(self._layouts) < LAYOUTS:
            self._layouts[layout] = KeptRow(file, line, offset, raw)
        if size > LARGE_BYTES:
            pass  # one of them is enough to hold
        elif len(self._longest) < LONGEST_ROWS:
            heapq.heappush(self._longest, (size, -self.rows, KeptRow(file, line, offset, raw)))
        elif size > self._longest[0][0]:
            heapq.heapreplace(self._longest, (size, -self.rows, KeptRow(file, line, offset, raw)))
        self.rows += 1


def outline_files(files: tuple[str, ...], outline: Outline, report: Report) -> Iterator[int]:
    """Read all files into `outline`; yields the bytes read so far. Bad rows go to `report`.

    Raises:
        DataError: naming file and line, where reading can not go on.
    """
    before = 0
    for path in map(Path, files):
        with open_source(path) as (source, head):
            lines = detect_kind(path, head) == "jsonl"
            steps = _json_lines(path, source, outline, report) if lines else _others(path, outline, report)
            for read in steps:
                outline.read = before + min(read, path.stat().st_size)
                yield outline.read
        before += path.stat().st_size


def _others(path: Path, outline: Outline, report: Report) -> Iterator[int]:
    for number, conversation in enumerate(read_conversations(path, report), 1):
        _count(outline, conversation, conversation, sum(len(message.content) for message in conversation.messages))
        if number % BLOCK_ROWS == 0:
            yield conversation.offset


def _count(outline: Outline, conversation: Conversation, raw: bytes | Conversation, size: int) -> None:
    outline.formats[conversation.format] = None
    outline.has_texts |= conversation.is_text
    roles = tuple(message.role for message in conversation.messages[:LAYOUTS])
    outline.add(conversation.file, conversation.line, conversation.offset, raw, size,
                (conversation.format, roles, bool(conversation.tools), bool(conversation.calls)))


def _json_lines(path: Path, source: Source, outline: Outline, report: Report) -> Iterator[int]:
    known: dict[tuple[str, ...], str] = {}
    first: Conversation | None = None
    start = source.tell() if isinstance(source, BufferedReader) else None  # another encoding has other places
    begins = array("q")
    rows = 0
    for line, whole, end in numbered_lines(source, path):
        raw = whole.strip()
        if not raw:
            continue
        rows += 1
        if rows % BLOCK_ROWS == 0:
            yield end
        value = quick_value(raw, MAX_DEPTH)
        layout = _layout(value, known) if first is not None and type(value) is dict else None
        if layout is not None:
            outline.add(path, line, end, raw, len(raw), layout)
            begins.append(end - len(whole))
            continue
        try:
            conversation = _conversation(path, line, raw, end, value)
            first = first or conversation
            require_same_format(first, conversation)
        except DataError as error:
            report(error)
            continue
        _count(outline, conversation, raw, len(raw))
        begins.append(end - len(whole))
        if type(value) is dict and _is_plain(value):
            known[tuple(value)] = conversation.format
    if not rows:
        raise DataError(f"{path} holds no rows.", "Choose a file that holds rows.")
    if start is not None and begins:
        outline.offsets[path] = np.frombuffer(begins, np.int64) + start


def _conversation(path: Path, line: int, raw: bytes, offset: int, value: Any = UNSURE) -> Conversation:
    if value is UNSURE or not isinstance(value, dict | str):
        row = json_row(path, line, raw, offset)
        if isinstance(row, DataError):
            raise row
        return to_conversation(row)
    return to_conversation(RawRow(path, line, value, offset))


def _is_plain(value: dict[str, Any]) -> bool:
    """True where another row with these columns, all of them texts or one list of plain turns, is as good as this."""
    return not any(key.strip().lower() in _NOT_PLAIN for key in value)


def _layout(value: dict[str, Any], known: dict[tuple[str, ...], str]) -> object:
    """The layout of a row that is certainly as good as an earlier one; None: it has to be looked at."""
    columns = tuple(value)
    if columns not in known:
        return None
    roles: object = None
    for key, item in value.items():
        if type(item) is str:
            continue
        if type(item) is not list or key not in _CHAT_COLUMNS or roles is not None:
            return None
        roles = _plain_roles(item, known[columns])
        if roles is None:
            return None
    return (columns, roles) if (roles is not None) == (known[columns] in _CHAT_FORMATS) else None


def _plain_roles(turns: list[Any], name: str) -> tuple[str, ...] | None:
    """The roles of turns that hold a plain text each; None where they must be looked at."""
    role_key, text_key = ("from", "value") if name == SHARE_GPT else ("role", "content")
    roles = []
    for turn in turns:
        if type(turn) is not dict or len(turn) != 2:
            return None
        role, text = turn.get(role_key), turn.get(text_key)
        if type(text) is not str or type(role) is not str or role not in _PLAIN_ROLES:
            return None
        roles.append(role)
    return tuple(roles[:LAYOUTS]) or None


class RowIndex:
    """The good rows of JSON lines by their number, from where each begins; no row is held."""

    def __init__(self, offsets: Sequence[tuple[Path, NDArray[np.int64]]]) -> None:
        self._offsets = offsets
        self._ends = np.cumsum([len(begins) for _, begins in offsets])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def conversation(self, number: int) -> Conversation:
        """A row, from 0.

        Raises:
            DataError: the file can not be read, or has changed.
        """
        place = int(np.searchsorted(self._ends, number, side="right"))
        path, begins = self._offsets[place]
        within = number - (int(self._ends[place - 1]) if place else 0)
        with open_source(path) as (source, _):
            assert isinstance(source, BufferedReader)
            source.seek(int(begins[within]))
            return _conversation(path, within + 1, source.readline(ROW_LIMIT_BYTES + 1).strip(), 0)
