"""A dataset file as a stream of UTF-8 bytes, whatever Unicode encoding it has, never more than one row in memory."""

import codecs
import contextlib
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from core.errors import DataError

ROW_LIMIT_BYTES = 64 * 2**20  # of one row in its file
HEAD_BYTES = 65536  # looked at to recognise a file

_OTHER_KINDS = (
    (b"\x1f\x8b", "a gzip file"), (b"PK\x03\x04", "a zip file or an office document"), (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"), (b"\x28\xb5\x2f\xfd", "a zstd file"), (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"), (b"%PDF", "a PDF file"), (b"SQLite format 3", "a database"),
    (b"\x89HDF", "an HDF5 file"), (b"GGUF", "a model (GGUF)"),
)


Report = Callable[[DataError], None]  # what is done with a row that can not be used


def stop_at(error: DataError) -> None:
    """The Report of a run: the first row that can not be used ends it."""
    raise error


def place(file: Path, line: int) -> str:
    """How a line of a file is named to the person."""
    return f"{file.name}, line {line}"


class Source(Protocol):
    """What the readers need of an open file: bytes in UTF-8."""

    def readline(self, limit: int, /) -> bytes:
        r"""At most `limit` bytes up to and with the next \n."""
        ...

    def read(self, count: int, /) -> bytes:
        """About `count` bytes; empty at the end."""
        ...


class _Transcoded:
    r"""UTF-16 or UTF-32 text as UTF-8 bytes; lines end at \n only (codecs' own readline also cuts at U+2028)."""

    def __init__(self, raw: BinaryIO, encoding: str, file: Path) -> None:
        self._text = codecs.getreader(encoding)(raw)
        self._file = file
        self._rest = b""

    def read(self, count: int) -> bytes:
        rest, self._rest = self._rest, b""
        if rest:
            return rest
        try:
            return self._text.read(count).encode("utf-8")
        except UnicodeError:
            raise DataError(f"{self._file.name} begins as UTF-16 but holds bytes that are not.",
                            "Save the file again as UTF-8.") from None

    def readline(self, limit: int) -> bytes:
        parts, size = [], 0
        while size < limit:
            block = self.read(HEAD_BYTES)
            end = block.find(b"\n") + 1
            if end:
                block, self._rest = block[:end], block[end:]
            parts.append(block)
            size += len(block)
            if end or not block:
                break
        return b"".join(parts)


@contextlib.contextmanager
def open_source(file: Path) -> Iterator[tuple[Source, bytes]]:
    """Open a dataset file after its byte order mark. Gives the stream and its first bytes (not consumed).

    Raises:
        DataError: missing, not a plain file, not readable, empty, or a kind that holds no text.
    """
    check_file(file)
    try:
        with open(file, "rb") as raw:
            start = raw.read(HEAD_BYTES)
            encoding, skipped = _encoding(start)
            _refuse_other_kinds(file, start)
            raw.seek(skipped)
            if encoding is None:
                yield raw, start[skipped:]
            else:
                head = _Transcoded(raw, encoding, file).read(HEAD_BYTES)
                raw.seek(skipped)
                yield _Transcoded(raw, encoding, file), head
    except OSError as error:
        raise DataError(f"{file} can not be read: {error.strerror or error}.",
                        "Check the file and its disk.") from error


def check_file(file: Path) -> None:
    """Raise DataError unless `file` is a regular file with something in it."""
    try:
        status = file.stat()
    except FileNotFoundError:
        raise DataError(f"The training file {file} does not exist.",
                        "Check the path, or choose another file.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"The training file {file} can not be opened: {error}.", "Check the path.") from None
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{file} is a folder, not a file.", "Choose a file inside it.")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{file} is not an ordinary file.", "Choose a file on the disk.")
    if status.st_size == 0:
        raise DataError(f"{file} is empty.", "Choose a file that holds rows.")


def _encoding(start: bytes) -> tuple[str | None, int]:
    """The codec to transcode from (None for UTF-8) and the length of the byte order mark."""
    marks = ((codecs.BOM_UTF8, None), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
             (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
    for mark, name in marks:
        if start.startswith(mark):
            return name, len(mark)
    return None, 0


def _refuse_other_kinds(file: Path, start: bytes) -> None:
    for magic, name in _OTHER_KINDS:
        if start.startswith(magic):
            raise DataError(f"{file.name} is {name}, which holds no rows that this program reads.",
                            "Unpack or convert it to JSONL, JSON, CSV or plain text first.")


def decode(raw: bytes, file: Path, line: int) -> str:
    """Strict UTF-8 without NUL.

    Raises:
        DataError: with file and line.
    """
    if b"\0" in raw:
        raise DataError(f"{place(file, line)}: there is a NUL byte.",
                        "The file is damaged, or it is UTF-16 without a byte order mark; save it as UTF-8.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise DataError(
            f"{place(file, line)}: this is not UTF-8 text (byte 0x{raw[error.start]:02x}).",
            "The file is in another encoding, such as GBK or Windows-1252; save it as UTF-8.") from None


def too_long(file: Path, line: int) -> DataError:
    """The error of a row beyond ROW_LIMIT_BYTES."""
    return DataError(f"{place(file, line)}: this row is longer than {ROW_LIMIT_BYTES // 2**20} MB.",
                     "Cut it into shorter rows; one row holds one conversation or one text.")
