"""Strict JSON, one row at a time: single lines, and the elements of a long array without reading it whole."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.quick_json import UNSURE, quick_value
from core.data.source import HEAD_BYTES, ROW_LIMIT_BYTES, Source, decode, place, too_long
from core.errors import DataError

MAX_DEPTH = 64  # of nested lists and objects in one row
MAX_DIGITS = 1000  # of one number

_JSON_HINT = "Each row must be valid JSON; a text editor or `python -m json.tool` shows the place."
_OUTSIDE = re.compile(rb'["{}\[\],:]')
_INSIDE = re.compile(rb'["\\]')
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")


class _Unusable(ValueError):
    """A value that JSON allows or Python tolerates and we do not."""


def parse_row(raw: bytes, file: Path, line: int) -> Any:
    """One JSON value, strictly: no NaN, no key twice, no lone surrogates, bounded depth and numbers.

    Args:
        raw: the text of the value.
        file: named in errors.
        line: where `raw` begins.

    Raises:
        DataError: with file and line.
    """
    value = quick_value(raw, MAX_DEPTH)
    if value is not UNSURE:
        return value
    text = decode(raw, file, line)
    try:
        value = _DECODER.decode(text)
        _check_nested(value, escapes="\\u" in text)
    except json.JSONDecodeError as error:
        where = place(file, line + error.lineno - 1)
        raise DataError(f"{where}: this is not valid JSON: {_plain(error.msg)} at character {error.colno}.",
                        _JSON_HINT) from None
    except _Unusable as error:
        raise DataError(f"{place(file, line)}: {error}.", _JSON_HINT) from None
    except RecursionError:
        raise DataError(f"{place(file, line)}: lists and objects are nested too deeply.", _JSON_HINT) from None
    return value


def _plain(message: str) -> str:
    return message[:1].lower() + message[1:]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Unusable(f"the key {twice[:60]!r} occurs twice in one object")
    return values


def _no_constant(name: str) -> Any:
    raise _Unusable(f"{name} is not a number that JSON knows")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _Unusable(f"a number has {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits) if len(digits) <= MAX_DIGITS else math.inf
    if not math.isfinite(number):
        raise _Unusable("a number is too large")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_whole_number,
                            parse_float=_finite)


def _check_nested(value: Any, escapes: bool) -> None:
    """Refuse depth beyond MAX_DEPTH and, where there were escapes, texts that UTF-8 can not hold."""
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _Unusable(f"lists and objects are nested more than {MAX_DEPTH} deep")
        if isinstance(item, dict):
            waiting.extend((child, depth + 1) for child in item.values())
            if escapes:
                waiting.extend((key, depth + 1) for key in item)
        elif isinstance(item, list):
            waiting.extend((child, depth + 1) for child in item)
        elif escapes and isinstance(item, str):
            _check_text(item)


def _check_text(text: str) -> None:
    if "\0" in text:
        raise _Unusable("a text holds the character NUL (\\u0000)")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise _Unusable("a text holds half of a character (a lone surrogate, \\ud800 to \\udfff)") from None


def array_elements(source: Source, file: Path) -> Iterator[tuple[int, bytes, int]]:
    """The elements of the outer array, or of the list "data" of the outer object, as they are read.

    Yields:
        (line where the element begins, its text, bytes read so far).

    Raises:
        DataError: the file ends too early, there is no such list, or text follows the end.
    """
    scanner = _ArrayScanner(file)
    while block := source.read(HEAD_BYTES):
        yield from scanner.feed(block)
    scanner.finish()


class _ArrayScanner:
    """Finds where array elements begin and end; it knows strings and brackets, json.loads does the rest."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._buffer = bytearray()  # from the start of the present element, or of the last key
        self._line = 1  # where the buffer begins
        self._read = 0
        self._depth = 0
        self._in_string = False
        self._skip = 0  # escaped bytes that a block boundary cut off
        self._row_depth = 0  # depth of the elements; 0: not in the list yet
        self._wrapped = False
        self._key = b""
        self._rows = 0
        self._ended = False

    def feed(self, block: bytes) -> Iterator[tuple[int, bytes, int]]:
        self._read += len(block)
        position = len(self._buffer)
        self._buffer += block
        position += self._skip
        self._skip = 0
        while True:
            pattern = _INSIDE if self._in_string else _OUTSIDE
            match = pattern.search(self._buffer, position)
            if match is None:
                break
            position, mark = match.end(), match.group()
            if self._in_string:
                if mark == b'"':
                    self._in_string = False
                else:
                    position += 1  # the escaped byte, perhaps in the next block
                continue
            cut = self._mark(mark, position)
            if cut is not None:
                line, raw = self._take(position, cut)
                position = 0
                if raw is not None:
                    self._rows += 1
                    yield line, raw, self._read
        self._skip = max(0, position - len(self._buffer))
        self._after_block()

    def _mark(self, mark: bytes, end: int) -> bool | None:
        """Note one structural byte. True: an element ends here; False: forget what lies before; None: go on."""
        if self._ended and self._depth == 0:
            raise self._after_the_end()
        if mark == b'"':
            self._in_string = True
            return None
        if mark in b"{[":
            self._depth += 1
            return self._open(mark)
        if mark in b"}]":
            self._depth -= 1
            if self._row_depth and self._depth == self._row_depth - 1:
                self._row_depth, self._ended = 0, True
                return True
            return None if self._row_depth else False
        if self._row_depth:
            return True if mark == b"," and self._depth == self._row_depth else None
        if mark == b":" and self._depth == 1:
            self._key = bytes(self._buffer[:end - 1]).strip()
        return False

    def _open(self, mark: bytes) -> bool | None:
        if self._row_depth:
            return None
        if self._depth == 1 and mark == b"{":
            self._wrapped = True
        elif not self._ended and mark == b"[" and (
                self._depth == 1 or (self._wrapped and self._depth == 2 and self._key == b'"data"')):
            self._row_depth = self._depth
        return False

    def _take(self, end: int, element: bool) -> tuple[int, bytes | None]:
        """Cut the buffer after `end`. The element is what lies before its last byte."""
        raw = bytes(self._buffer[:end])
        del self._buffer[:end]
        first = _NOT_SPACE.search(raw)
        line = self._line + raw.count(b"\n", 0, first.start() if first else None)
        self._line += raw.count(b"\n")
        if not element:
            return line, None
        body = raw[:-1].strip()
        if body:
            return line, body
        if self._ended and self._rows == 0:
            return line, None
        raise DataError(f"{place(self._file, line)}: a row is missing beside a comma.", "Remove the comma.")

    def _after_block(self) -> None:
        if len(self._buffer) > ROW_LIMIT_BYTES:
            raise too_long(self._file, self._line)
        if self._depth == 0 and self._ended and _NOT_SPACE.search(self._buffer):
            raise self._after_the_end()

    def _after_the_end(self) -> DataError:
        rest = _NOT_SPACE.search(self._buffer)
        line = self._line + self._buffer.count(b"\n", 0, rest.start() if rest else None)
        return DataError(f"{place(self._file, line)}: there is text after the end of the list.",
                         "A JSON file holds one list; where each line is a row, the file's name ends in .jsonl.")

    def finish(self) -> None:
        """Raise DataError unless the list was there and came to its end."""
        if self._ended and self._depth == 0:
            return
        if self._row_depth or self._in_string or self._ended:
            first = _NOT_SPACE.search(self._buffer)
            line = self._line + self._buffer.count(b"\n", 0, first.start() if first else len(self._buffer))
            raise DataError(f"{place(self._file, line)}: the file ends in the middle of this row.",
                            "The file was cut off; copy or download it again.")
        raise DataError(f"{self._file.name} holds a JSON object without a list of rows called \"data\".",
                        "Use a JSON list of rows, {\"data\": [rows]}, or JSONL with one row a line.")
