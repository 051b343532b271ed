"""Safetensors read and written in pieces, so that no shard is ever whole in memory.

A mapped file counts as memory of the process for every page that was touched, so pieces are
read into buffers of our own. Layout: 8 bytes header length, JSON header, the tensors' bytes.
"""

import contextlib
import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from torch import Tensor

from core import files
from core.errors import ModelError
from core.models.safetensors_header import read_header
from core.models.safety import read_weight_map, weight_files

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
BLOCK_BYTES = 4 * 2**20  # copied at once
CHANGED_BYTES = 2 * 2**20  # changed at once, counted in fp64: a few of them lie beside each other in a core's cache
TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class TensorRecord:
    """One tensor in a shard: its safetensors type (BF16), shape, and where its bytes lie in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Path
    offset: int
    nbytes: int

    @property
    def rows(self) -> int:
        """Length of the first dimension; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its tensors in the order of the file, and its metadata."""

    path: Path
    tensors: tuple[TensorRecord, ...]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """The weight files of a model folder. `index` is None where there is a single file without one."""

    folder: Path
    shards: tuple[Shard, ...]
    index: dict[str, Any] | None

    @property
    def tensors(self) -> dict[str, TensorRecord]:
        """Every tensor by its key."""
        return {record.name: record for shard in self.shards for record in shard.tensors}


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the index and the headers of a model folder; no weights.

    Raises:
        ModelError: no safetensors, a damaged shard or index, or a key that occurs twice.
    """
    paths = weight_files(folder)
    shards = tuple(read_shard(path) for path in paths)
    seen: set[str] = set()
    for record in (record for shard in shards for record in shard.tensors):
        if record.name in seen:
            raise ModelError(f"{record.name} occurs in two shards of {folder}.", "Fetch the model again.")
        seen.add(record.name)
    if paths == [folder / SINGLE_NAME]:
        return Checkpoint(folder, shards, None)
    missing = sorted(set(read_weight_map(folder)) - seen)
    if missing:
        raise ModelError(f"The index of {folder} names {missing[0]}, which is in no shard.", "Fetch the model again.")
    return Checkpoint(folder, shards, json.loads((folder / INDEX_NAME).read_bytes()))


def read_shard(path: Path) -> Shard:
    """Read one shard's header. Raises ModelError where the file is missing or damaged."""
    header = read_header(path)
    records = []
    for name, entry in header.tensors.items():
        if entry.dtype not in TORCH_DTYPES:
            raise ModelError(f"{name} in {path} has the number type {entry.dtype}, which can not be merged.",
                             "Choose the version of the model in bf16, fp16 or fp32.")
        records.append(TensorRecord(name, entry.dtype, entry.shape, path, header.data_start + entry.begin,
                                    entry.end - entry.begin))
    records.sort(key=lambda record: (record.offset, record.name))
    return Shard(path, tuple(records), header.metadata)


class TensorReader:
    """Reads pieces of tensors; keeps the last two shards open. For one thread at a time."""

    def __init__(self) -> None:
        self._files: dict[Path, BufferedReader] = {}

    def raw(self, record: TensorRecord, start: int, count: int) -> bytearray:
        """`count` bytes of the tensor from `start`."""
        file = self._files.get(record.shard)
        if file is None:
            if len(self._files) == 2:
                self._files.pop(next(iter(self._files))).close()
            file = self._files[record.shard] = open(record.shard, "rb")  # noqa: SIM115 - closed by close()
        buffer = bytearray(count)
        file.seek(record.offset + start)
        if file.readinto(buffer) != count:
            raise ModelError(f"The weight file {record.shard} ends too early.", "Fetch the model again.")
        return buffer

    def rows(self, record: TensorRecord, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the first dimension, in the stored type."""
        row_bytes = record.nbytes // record.rows if record.rows else 0
        dtype = TORCH_DTYPES[record.dtype]
        shape = (stop - start, *record.shape[1:])
        if row_bytes == 0 or stop == start:
            return torch.empty(shape, dtype=dtype)
        buffer = self.raw(record, start * row_bytes, (stop - start) * row_bytes)
        return torch.frombuffer(buffer, dtype=dtype).reshape(shape)

    def whole(self, record: TensorRecord) -> Tensor:
        """The whole tensor, in the stored type."""
        return self.rows(record, 0, record.rows).reshape(record.shape)

    def close(self) -> None:
        """Close the open shards."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: its key, safetensors type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers in the file."""
        return math.prod(self.shape) * TORCH_DTYPES[self.dtype].itemsize


class ShardWriter:
    """Writes one safetensors file: the header at once, then each tensor's bytes as they come."""

    def __init__(self, file: IO[bytes], tensors: Sequence[TensorSpec], metadata: dict[str, str]) -> None:
        self.file = file
        self._remaining = sum(spec.nbytes for spec in tensors)
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        offset = 0
        for spec in tensors:
            header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape),
                                 "data_offsets": [offset, offset + spec.nbytes]}
            offset += spec.nbytes
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)

    def write(self, piece: Tensor | bytearray) -> int:
        """Append the next piece of the tensors' bytes, in the order of the header; returns how many they are."""
        data = piece if isinstance(piece, bytearray) else _bytes_of(piece)
        self._remaining -= len(data)
        self.file.write(data)
        return len(data)

    def finish(self) -> None:
        """Assert that exactly the announced bytes were written."""
        assert self._remaining == 0, f"{self._remaining} bytes differ from the header"


@contextlib.contextmanager
def write_shard(path: Path, tensors: Sequence[TensorSpec], metadata: dict[str, str]) -> Iterator[ShardWriter]:
    """Write a new safetensors file piece by piece, whole or not at all."""
    with files.atomic_path(path) as temporary, open(temporary, "r+b") as file:
        writer = ShardWriter(file, tensors, metadata)
        yield writer
        writer.finish()


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def in_file_order(tensors: Sequence[TensorSpec]) -> list[int]:
    """Positions of `tensors` in the order to write them: wide types first, so that each lies aligned."""
    return sorted(range(len(tensors)), key=lambda i: -TORCH_DTYPES[tensors[i].dtype].itemsize)


def row_blocks(rows: int, row_elements: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of rows of at most CHANGED_BYTES."""
    step = max(1, CHANGED_BYTES // max(1, 8 * row_elements))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
