"""Encoded rows in flat files, read one at a time: a run of a million rows needs no more memory than one of a thousand.

tokens.bin holds the rows end to end, each as its ids (int32, little endian) and then its supervised
bits (`np.packbits`). rows.bin holds a record a row (`ROW`), digests.bin the digest of its ids.
The tokens are read from the file and not mapped: pages of a mapping count as memory of the process.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from core.data.template import EncodedRow
from core.errors import DataError
from core.files import partial_file

ROW = np.dtype([("start", "<i8"), ("tokens", "<i4"), ("length", "<i4"), ("index", "<i8"), ("cut", "?")])
_DIGEST_BYTES = 16
_TOKENS, _ROWS, _DIGESTS = "tokens.bin", "rows.bin", "digests.bin"


class RowWriter:
    """Appends rows to the files in `folder`, which has none yet; memory holds one of them."""

    def __init__(self, folder: Path) -> None:
        self._open = ExitStack()
        self._tokens, self._rows, self._digests = (
            self._open.enter_context(partial_file(folder / name)) for name in (_TOKENS, _ROWS, _DIGESTS))
        self._end = 0
        self.rows = 0
        self.largest_id = -1

    def add(self, row: EncodedRow) -> None:
        """Append `row`."""
        ids = row.input_ids.astype("<i4", copy=False).tobytes()
        self._rows.write(np.array([(self._end, len(row), row.length, row.index, row.cut)], ROW).tobytes())
        self._digests.write(digest_of(row))
        self._end += self._tokens.write(ids + np.packbits(row.supervised).tobytes())
        self.rows += 1
        self.largest_id = max(self.largest_id, int(row.input_ids.max(initial=-1)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._open.close()


def digest_of(row: EncodedRow) -> bytes:
    """16 bytes that are the same for rows with the same ids."""
    return hashlib.blake2b(row.input_ids.tobytes(), digest_size=_DIGEST_BYTES).digest()


def digests_of(rows: Sequence[EncodedRow]) -> NDArray[np.uint64]:
    """(n, 2): what `read_digests` gives, for rows in memory."""
    return np.frombuffer(b"".join(map(digest_of, rows)), np.uint64).reshape(-1, 2)


def read_digests(folder: Path) -> NDArray[np.uint64]:
    """(n, 2): the digests of all rows in the files of `folder`, in their order."""
    return np.fromfile(folder / _DIGESTS, np.uint64).reshape(-1, 2)


def is_whole(folder: Path, rows: int) -> bool:
    """True if the files in `folder` have the sizes that `rows` rows give."""
    try:
        records, digests, tokens = ((folder / name).stat().st_size for name in (_ROWS, _DIGESTS, _TOKENS))
    except OSError:
        return False
    if rows < 1 or records != rows * ROW.itemsize or digests != rows * _DIGEST_BYTES:
        return False
    last: Any = np.fromfile(folder / _ROWS, ROW, 1, offset=records - ROW.itemsize)[0]
    return tokens == int(last["start"]) + _bytes_of(int(last["tokens"]))


def _bytes_of(tokens: int) -> int:
    return 4 * tokens + -(-tokens // 8)


class StoredRows(Sequence[EncodedRow]):
    """Some of the rows in the files of a folder, each read when it is asked for. Any thread may read.

    Args:
        folder: where a `RowWriter` wrote them.
        numbers: which of them, in this order; None: all.
    """

    def __init__(self, folder: Path, numbers: NDArray[np.int64] | None = None) -> None:
        self._path = folder / _TOKENS
        records = np.fromfile(folder / _ROWS, ROW)
        self._records = records if numbers is None else records[numbers]
        self._file = open(self._path, "rb", buffering=0)  # noqa: SIM115 -- closed with the last reference to it
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, place: int) -> EncodedRow: ...

    @overload
    def __getitem__(self, place: slice) -> list[EncodedRow]: ...

    def __getitem__(self, place: int | slice) -> EncodedRow | list[EncodedRow]:
        """A row, or the list of the rows of a slice.

        Raises:
            DataError: the file can not be read.
        """
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        start, tokens, length, index, cut = self._records[place].item()
        raw = self._read(start, _bytes_of(tokens))
        supervised = np.unpackbits(np.frombuffer(raw, np.uint8, offset=4 * tokens), count=tokens)
        ids = np.frombuffer(raw, "<i4", tokens).astype(np.int32, copy=False)
        return EncodedRow(index, ids, supervised.view(np.bool_), cut, length)

    def __iter__(self) -> Iterator[EncodedRow]:
        return (self[number] for number in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int32]:
        """(n,): the tokens of every row, without reading them."""
        return self._records["tokens"]

    @property
    def indices(self) -> NDArray[np.int64]:
        """(n,): the index of every row in the dataset, without reading them."""
        return self._records["index"]

    @property
    def path(self) -> Path:
        """The file with the tokens."""
        return self._path

    @property
    def records(self) -> bytes:
        """Where each of the rows lies in that file, in their order."""
        return self._records.tobytes()

    def _read(self, start: int, count: int) -> bytearray:
        raw = bytearray(count)
        try:
            with self._lock:
                self._file.seek(start)
                found = self._file.readinto(raw)
        except OSError as error:
            raise DataError(f"{self._path} can not be read: {error.strerror or error}.", "Check the disk.") from error
        if found != count:
            raise DataError(f"{self._path} was cut off while it was in use.", "Start the run again.")
        return raw


def digest_of_all(*parts: Sequence[EncodedRow]) -> str:
    """SHA-256 of all ids and supervised bits of some rows in their order.

    The file with stored rows is read once from end to end: a million rows take a second, one by one half a minute.
    """
    digest = hashlib.sha256()
    for path in sorted({part.path for part in parts if isinstance(part, StoredRows)}):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        if isinstance(part, StoredRows):
            digest.update(part.records)
            continue
        for row in part:
            digest.update(len(row).to_bytes(8, "little") + row.input_ids.tobytes() + row.supervised.tobytes())
    return digest.hexdigest()


def row_lengths(rows: Sequence[EncodedRow]) -> NDArray[np.int32]:
    """(n,): the tokens of every row."""
    return rows.lengths if isinstance(rows, StoredRows) else np.array([len(row) for row in rows], np.int32)


def row_indices(rows: Sequence[EncodedRow]) -> NDArray[np.int64]:
    """(n,): the index of every row in the dataset."""
    return rows.indices if isinstance(rows, StoredRows) else np.array([row.index for row in rows], np.int64)
