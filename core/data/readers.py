"""Rows of dataset files: JSONL, JSON, CSV, TSV and plain text, recognised by content, read as a stream."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from core.data.json_rows import array_elements, parse_row
from core.data.source import ROW_LIMIT_BYTES, Report, Source, decode, open_source, place, stop_at, too_long
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


def read_rows(path: Path, report: Report = stop_at) -> Iterator[RawRow]:
    """The rows of one file, in order; memory holds one row at a time.

    A row that can not be read goes to `report`; if that returns, reading goes on after the row.

    Raises:
        DataError: naming file and line, where reading can not go on.
    """
    with open_source(path) as (source, head):
        readers = {"jsonl": _json_lines, "json": _json_array, "csv": _table, "tsv": _table, "text": _text}
        empty = True
        for row in readers[detect_kind(path, head)](source, path, head):
            empty = False
            if isinstance(row, DataError):
                report(row)
            else:
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


def numbered_lines(source: Source, file: Path) -> Iterator[tuple[int, bytes, int]]:
    r"""(number, line with its \n, bytes read so far); lines end at \n only."""
    number = offset = 0
    while line := source.readline(ROW_LIMIT_BYTES + 1):
        number += 1
        offset += len(line)
        if len(line) > ROW_LIMIT_BYTES:
            raise too_long(file, number)
        yield number, line, offset


def _json_lines(source: Source, file: Path, head: bytes) -> Iterator[RawRow | DataError]:
    for number, line, offset in numbered_lines(source, file):
        raw = line.strip()
        if raw:
            yield json_row(file, number, raw, offset)


def _json_array(source: Source, file: Path, head: bytes) -> Iterator[RawRow | DataError]:
    for number, raw, offset in array_elements(source, file):
        yield json_row(file, number, raw, offset)


def json_row(file: Path, line: int, raw: bytes, offset: int) -> RawRow | DataError:
    """The row in a JSON text, or what is wrong with it."""
    try:
        value = parse_row(raw, file, line)
    except DataError as error:
        return error
    if not isinstance(value, dict | str):
        name = {list: "a list", bool: "true or false", type(None): "null"}.get(type(value), "a number")
        return DataError(f"{place(file, line)}: a row must be a JSON object, not {name}.",
                         'For example: {"prompt": "…", "completion": "…"}')
    return RawRow(file, line, value, offset)


def _table(source: Source, file: Path, head: bytes) -> Iterator[RawRow | DataError]:
    csv.field_size_limit(ROW_LIMIT_BYTES)  # its default refuses fields of 128 KiB
    position = [0]

    def lines() -> Iterator[str]:
        for number, line, offset in numbered_lines(source, file):
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
                yield _table_row(file, line, names, cells, position[0])
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{place(file, line)}: this table row can not be read: {error}.",
                        "Put texts that hold commas, quotes or line ends in quotes.") from None


def _table_row(file: Path, line: int, names: list[str], cells: list[str], offset: int) -> RawRow | DataError:
    if len(cells) != len(names):
        return DataError(f"{place(file, line)}: {len(cells)} cells, but the first line names {len(names)} columns.",
                         "Put texts that hold commas or line ends in quotes.")
    return RawRow(file, line, dict(zip(names, cells, strict=True)), offset)


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
    previous: RawRow | None = None
    for row in _text_blocks(source, file):
        if previous is not None:
            yield previous
        previous = row
    if previous is not None:
        yield replace(previous, value=str(previous.value).rstrip(), continues=False)


def _text_blocks(source: Source, file: Path) -> Iterator[RawRow]:
    line, block, offset = 1, "", 0
    for number, raw, end in numbered_lines(source, file):
        text = decode(raw, file, number).replace("\r\n", "\n")
        if block and len(block) + len(text) > TEXT_BLOCK_CHARACTERS:
            yield RawRow(file, line, block, offset, continues=True)
            block = ""
        if not block.strip():
            line, block = number, ""
        *whole, block = split_text(block + text)
        for part in whole:
            yield RawRow(file, number, part, offset, continues=True)
        offset = end
    if block.strip():
        yield RawRow(file, line, block, offset, continues=True)


def split_text(text: str) -> list[str]:
    """A long text in parts of at most TEXT_BLOCK_CHARACTERS, cut before a space where there is one."""
    parts, start = [], 0
    while len(text) - start > TEXT_BLOCK_CHARACTERS:
        end = start + TEXT_BLOCK_CHARACTERS
        space = text.rfind(" ", start + TEXT_BLOCK_CHARACTERS // 2, end)
        end = space if space > 0 else end
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]
