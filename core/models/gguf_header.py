"""The header of a GGUF file, read with limits, so that a hostile file can neither hang nor fill memory.

Layout (GGUF 2 and 3, little-endian): "GGUF", version u32, tensor count u64, pair count u64, then the
pairs (key, type u32, value), then the tensor table (name, dims, type, offset), then aligned data.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from core.errors import ModelError
from core.models.json_file import require_regular

MAX_PAIRS = 20_000
MAX_TENSORS = 100_000
MAX_KEY_BYTES = 65_535
MAX_TEXT_BYTES = 16 * 1024**2
MAX_ARRAY = 4_000_000
MAX_HEADER_BYTES = 256 * 1024**2
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the table; `shape` in GGUF order, the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    type_name: str  # F32, Q4_1, …
    offset: int  # from the start of the data
    bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensor table. Arrays of strings longer than 64 are given as their length."""

    path: Path
    file_bytes: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def parameters(self) -> int:
        """Number of elements over all tensors."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def type_names(self) -> tuple[str, ...]:
        """The number types of the weights, the one with the most bytes first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.type_name] = sizes.get(tensor.type_name, 0) + tensor.bytes
        return tuple(sorted(sizes, key=lambda name: -sizes[name]))


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and verify the header.

    Raises:
        ModelError: not a GGUF file, damaged, cut off, or only a part of a model.
    """
    size = require_regular(path)
    if size < 32:
        raise _damaged(path, "it is too short")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        reader = _Reader(path, content, size)
        try:
            metadata, tensors, end = _read(reader)
        except struct.error:
            raise _damaged(path, "it is cut off within its header") from None
        except UnicodeDecodeError:
            raise _damaged(path, "a text in its header is not UTF-8") from None
    _require_whole(path, size, metadata, tensors, end)
    return GgufHeader(path, size, metadata, tensors)


class _Reader:
    """A cursor over the mapped file that never leaves it."""

    def __init__(self, path: Path, content: mmap.mmap, size: int) -> None:
        self.path = path
        self.content = content
        self.limit = min(size, MAX_HEADER_BYTES)
        self.position = 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value

    def take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > self.limit:
            raise _damaged(self.path, "it is cut off within its header, or the header is far too large")
        start, self.position = self.position, end
        return self.content[start:end]

    def text(self, limit: int) -> str:
        length = self.scalar("Q")
        if length > limit:
            raise _damaged(self.path, f"a text in its header claims {length:,} bytes")
        return self.take(length).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text(MAX_TEXT_BYTES)
        if kind == _ARRAY:
            return self.array()
        raise _damaged(self.path, f"its header has a value of the unknown type {kind}")

    def array(self) -> Any:
        kind, count = self.scalar("I"), self.scalar("Q")
        if count > MAX_ARRAY:
            raise _damaged(self.path, f"a list in its header claims {count:,} entries")
        if kind in _SCALARS:
            code = _SCALARS[kind]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"))))
        if kind != _STRING:
            raise _damaged(self.path, f"its header has a list of the unusable type {kind}")
        texts = [self.text(MAX_TEXT_BYTES) for _ in range(count)]
        return texts if count <= 64 else count  # the vocabulary is read by the tokenizer's own loader


def _read(reader: _Reader) -> tuple[dict[str, Any], tuple[GgufTensor, ...], int]:
    if reader.take(4) != b"GGUF":
        raise ModelError(f"{reader.path} is not a GGUF file.", "Choose a file that ends in .gguf.")
    version = reader.scalar("I")
    if version not in (2, 3):
        raise ModelError(f"{reader.path} has the GGUF version {version}; only 2 and 3 (little-endian) can be read.")
    tensor_count, pair_count = reader.scalar("Q"), reader.scalar("Q")
    if tensor_count > MAX_TENSORS or pair_count > MAX_PAIRS:
        raise _damaged(reader.path, f"it claims {tensor_count:,} tensors and {pair_count:,} header entries")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = reader.text(MAX_KEY_BYTES)
        if key in metadata:
            raise _damaged(reader.path, f"its header has {key[:80]!r} twice")
        metadata[key] = reader.value(reader.scalar("I"))
    tensors = tuple(_tensor(reader) for _ in range(tensor_count))
    return metadata, tensors, reader.position


def _tensor(reader: _Reader) -> GgufTensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415 - only where it is needed

    name = reader.text(MAX_KEY_BYTES)
    dimensions = reader.scalar("I")
    if not 1 <= dimensions <= 4:
        raise _damaged(reader.path, f"{name[:80]} has {dimensions} dimensions")
    shape = tuple(reader.scalar("Q") for _ in range(dimensions))
    kind, offset = reader.scalar("I"), reader.scalar("Q")
    try:
        type_of = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[type_of]
    except (ValueError, KeyError):
        raise ModelError(f"{reader.path} has weights of a number type ({kind}) that is not known here.",
                         "Choose another quantisation of this model, such as Q8_0 or Q4_K_M.") from None
    elements = prod(shape)
    if not 0 < elements < 2**40 or shape[0] % block:
        raise _damaged(reader.path, f"the shape of {name[:80]} is not possible")
    return GgufTensor(name, shape, type_of.name, offset, elements // block * block_bytes)


def _require_whole(path: Path, size: int, metadata: dict[str, Any], tensors: tuple[GgufTensor, ...],
                   end: int) -> None:
    if not isinstance(metadata.get("general.architecture"), str):
        raise _damaged(path, "it does not say what kind of model it is (general.architecture)")
    parts = metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise ModelError(f"{path} is one of {parts} parts of a model.",
                         "Join the parts first with llama.cpp's `llama-gguf-split --merge`.")
    if not tensors:
        raise ModelError(f"{path} holds no weights, only a header.", "Choose the file with the model itself.")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise _damaged(path, "its alignment is not possible")
    start = -(-end // alignment) * alignment
    position = 0
    for tensor in sorted(tensors, key=lambda item: item.offset):
        if tensor.offset < position or tensor.offset % alignment:
            raise _damaged(path, f"{tensor.name[:80]} overlaps another tensor or is not aligned")
        position = tensor.offset + tensor.bytes
    if start + position > size:
        raise _damaged(path, f"it is cut off, {start + position - size:,} bytes are missing at its end")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise _damaged(path, "two tensors have the same name")


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path} is damaged: {reason}.", "Fetch the file again.")
