"""Rows of dataset files: JSONL, JSON, CSV, TSV and plain text, recognised by content, read as a stream."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.data.json_rows import array_elements, parse_row
from core.data.source import HEAD_BYTES, ROW_LIMIT_BYTES, Source, decode, open_source, place, too_long
from core.errors import DataError

TEXT_BLOCK_CHARACTERS = 32768  # a long plain text is read in blocks of about so many characters

Kind = Literal["jsonl", "json", "csv", "tsv", "text"]

_TEXT_SUFFIXES = frozenset({".txt", ".md", ".markdown", ".text", ".rst"})
_JSON_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})
_COLUMNS = frozenset({"instruction", "input", "output", "system", "prompt", "completion", "response", "question",
                      "answer", "query", "text", "context"})
_WRAPPER = re.compile(rb'\s*\{\s*"data"\s*:\s*\[')


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it lies in its file.

    `line` is where it begins (from 1). `value` is a JSON object or CSV row, or plain text.
    `offset` counts the bytes of the file read so far. `continues`: the text goes on in the next row.
    """

    file: Path
    line: int
    value: dict[str, Any] | str
    offset: int = 0
    continues: bool = False


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of one file, in order; memory holds one row at a time.

    Raises:
        DataError: naming file and line, at the row that can not be read.
    """
    with open_source(path) as (source, head):
        kind = detect_kind(path, head)
        readers = {"jsonl": _json_lines, "json": _json_array, "csv": _table, "tsv": _table, "text": _text}
        empty = True
        for row in readers[kind](source, path, head):
            empty = False
            yield row
        if empty:
            raise DataError(f"{path} holds no rows.", "Choose a file that holds rows.")


def detect_kind(path: Path, head: bytes) -> Kind:
    """How to read a file, from its first bytes; the suffix decides only where the content leaves it open.

    Raises:
        DataError: called .json or .jsonl, but without JSON in it.
    """
    suffix = path.suffix.lower()
    start = head.lstrip()[:1]
    if start == b"{" and (suffix not in _TEXT_SUFFIXES or _looks_like_json(head)):
        return "json" if _is_wrapper(head) else "jsonl"
    if start == b"[" and (suffix not in _TEXT_SUFFIXES or re.match(rb"\s*\[\s*\{\s*\"", head)):
        return "json"
    if suffix in _JSON_SUFFIXES and start:
        raise DataError(f"{place(path, 1)}: the file is called {suffix} but does not begin with {{ or [.",
                        "Give the file its right ending, or write one JSON object a line.")
    if suffix in (".csv", ".tsv"):
        return "tsv" if suffix == ".tsv" else "csv"
    return _table_kind(head) or "text"


def _looks_like_json(head: bytes) -> bool:
    return re.match(rb'\s*\{\s*"[^"\n]{1,60}"\s*:', head) is not None


def _is_wrapper(head: bytes) -> bool:
    """True for one big object; false for an object a line."""
    if _WRAPPER.match(head):
        return True
    lines = [line.strip() for line in head.lstrip().split(b"\n", 2)[:2]]
    return len(lines) == 2 and not lines[0].endswith(b"}") and not lines[1].startswith(b"{")


def _table_kind(head: bytes) -> Literal["csv", "tsv"] | None:
    """CSV or TSV without its suffix: a first line of at least two known column names."""
    first = head.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    for delimiter in "\t,":
        names = [name.strip().strip('"').lower() for name in first.split(delimiter)]
        if len(names) > 1 and all(name in _COLUMNS for name in names):
            return "tsv" if delimiter == "\t" else "csv"
    return None


def _lines(source: Source, file: Path) -> Iterator[tuple[int, bytes, int]]:
    r"""(number, line with its \n, bytes read so far); lines end at \n only."""
    number = offset = 0
    while line := source.readline(ROW_LIMIT_BYTES + 1):
        number += 1
        offset += len(line)
        if len(line) > ROW_LIMIT_BYTES:
            raise too_long(file, number)
        yield number, line, offset


def _json_lines(source: Source, file: Path, head: bytes) -> Iterator[RawRow]:
    for number, line, offset in _lines(source, file):
        raw = line.strip()
        if raw:
            yield _row(file, number, parse_row(raw, file, number), offset)


def _json_array(source: Source, file: Path, head: bytes) -> Iterator[RawRow]:
    for number, raw, offset in array_elements(source, file):
        yield _row(file, number, parse_row(raw, file, number), offset)


def _row(file: Path, line: int, value: Any, offset: int) -> RawRow:
    if not isinstance(value, dict | str):
        name = {list: "a list", bool: "true or false", type(None): "null"}.get(type(value), "a number")
        raise DataError(f"{place(file, line)}: a row must be a JSON object, not {name}.",
                        'For example: {"prompt": "…", "completion": "…"}')
    return RawRow(file, line, value, offset)


def _table(source: Source, file: Path, head: bytes) -> Iterator[RawRow]:
    csv.field_size_limit(ROW_LIMIT_BYTES)  # its default refuses fields of 128 KiB
    position = [0]

    def lines() -> Iterator[str]:
        for number, line, offset in _lines(source, file):
            position[0] = offset
            yield decode(line, file, number).replace("\r\n", "\n")

    reader = csv.reader(lines(), delimiter=_delimiter(file, head), strict=True)
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            if cells and not names:
                names = _column_names(file, line, cells)
            elif cells:
                if len(cells) != len(names):
                    raise DataError(f"{place(file, line)}: {len(cells)} cells, but the first line names "
                                    f"{len(names)} columns.", "Put texts that hold commas or line ends in quotes.")
                yield RawRow(file, line, dict(zip(names, cells, strict=True)), position[0])
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{place(file, line)}: this table row can not be read: {error}.",
                        "Put texts that hold commas, quotes or line ends in quotes.") from None


def _delimiter(file: Path, head: bytes) -> str:
    first = head.split(b"\n", 1)[0]
    if file.suffix.lower() == ".tsv":
        return "\t"
    return max(",;\t", key=lambda mark: first.count(mark.encode()))


def _column_names(file: Path, line: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if "" in names or len(set(names)) != len(names):
        raise DataError(f"{place(file, line)}: the first line must name every column once.",
                        "For example: prompt,completion")
    return names


def _text(source: Source, file: Path, head: bytes) -> Iterator[RawRow]:
    """The whole file is one document, given in blocks that end at a line end or a space."""
    first, block, offset = 1, io.StringIO(), 0
    pending: RawRow | None = None
    for piece, line, offset in _text_pieces(source, file):
        if block.tell() + len(piece) > TEXT_BLOCK_CHARACTERS and block.tell():
            if pending is not None:
                yield pending
            pending = _text_row(file, first, block.getvalue(), offset, continues=True)
            first, block = line, io.StringIO()
        block.write(piece)
    last = block.getvalue()
    if pending is not None:
        yield pending if last.strip() else RawRow(file, pending.line, pending.value, offset)
    if last.strip():
        yield _text_row(file, first, last.rstrip(), offset, continues=False)


def _text_row(file: Path, line: int, text: str, offset: int, *, continues: bool) -> RawRow:
    return RawRow(file, line, text, offset, continues)


def _text_pieces(source: Source, file: Path) -> Iterator[tuple[str, int, int]]:
    """Lines, and very long lines cut at spaces: (text, line, bytes read so far)."""
    for number, raw, offset in _lines(source, file):
        line = decode(raw, file, number).replace("\r\n", "\n")
        while len(line) > TEXT_BLOCK_CHARACTERS:
            cut = line.rfind(" ", TEXT_BLOCK_CHARACTERS // 2, TEXT_BLOCK_CHARACTERS)
            cut = cut if cut > 0 else TEXT_BLOCK_CHARACTERS
            yield line[:cut], number, offset
            line = line[cut:]
        yield line, number, offset


__all__ = ["HEAD_BYTES", "RawRow", "detect_kind", "read_rows"]
