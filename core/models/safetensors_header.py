"""The header of a safetensors file, read and verified without its tensors.

Layout: 8 bytes little-endian header length, that many bytes of JSON
{name: {dtype, shape, data_offsets: [begin, end]}}, then the tensors' bytes without gaps.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import IO, Any, TypeGuard

from core.errors import ModelError
from core.models.json_file import parse_object, require_regular

MAX_HEADER_BYTES = 32 * 1024**2  # 100,000 tensors need about half of it
MAX_TENSORS = 100_000
MAX_NAME = 512
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "F4": 4,
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: `begin` and `end` count bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a safetensors file says of itself. `raw` is the JSON as it stands in the file."""

    path: Path
    raw: bytes
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]

    @property
    def data_start(self) -> int:
        """Position in the file of the first tensor's first byte."""
        return 8 + len(self.raw)


def read_header(path: Path) -> SafetensorsHeader:
    """Read and verify the header of one safetensors file; the last ones are kept until their file changes.

    Raises:
        ModelError: damaged, cut off, or made to mislead; names the file.
    """
    size = require_regular(path)
    status = path.stat()
    return _verified_header(path, size, (status.st_mtime_ns, status.st_ctime_ns, status.st_ino))


@lru_cache(maxsize=64)  # a run asks for them three times before it starts
def _verified_header(path: Path, size: int, state: tuple[int, ...]) -> SafetensorsHeader:
    try:
        with open(path, "rb") as file:
            raw = _raw_header(file, size, path)
    except OSError as error:
        raise ModelError(f"{path} can not be read: {error.strerror or error}.") from None
    values = parse_object(raw, f"The header of {path}")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its metadata is not a table of strings")
    if len(values) > MAX_TENSORS:
        raise _damaged(path, f"it names {len(values):,} tensors, more than {MAX_TENSORS:,}")
    tensors = {name: _entry(name, value, path) for name, value in values.items()}
    _require_gapless(tensors, size - 8 - len(raw), path)
    return SafetensorsHeader(path, raw, tensors, metadata)


def _raw_header(file: IO[bytes], size: int, path: Path) -> bytes:
    start, first = file.read(8), file.read(1)
    # a header of 640 bytes starts as a pickle does; what follows tells them apart
    if first != b"{" and start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise ModelError(f"{path} is a pickle file under another name; such files can run code and are not opened.",
                         "Get the safetensors version of this model.")
    if len(start) < 8:
        raise _damaged(path, "it is too short")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        raise _damaged(path, f"its header claims {length:,} bytes, more than {MAX_HEADER_BYTES:,}")
    if length > size - 8:
        raise _damaged(path, "it is cut off within its header")
    return (first + file.read(length - 1)) if length else b""


def _entry(name: str, value: Any, path: Path) -> TensorEntry:
    if not name or len(name) > MAX_NAME or ".." in name or any(char in "/\\:" or ord(char) < 32 for char in name):
        raise _damaged(path, f"the tensor name {name[:80]!r} is not usable")
    if not isinstance(value, dict):
        raise _damaged(path, f"the entry of {name} is not an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _damaged(path, f"{name} has the unknown number type {str(dtype)[:40]!r}")
    if not _is_counts(shape, 16) or not _is_counts(offsets, 2) or len(offsets) != 2:
        raise _damaged(path, f"shape or position of {name} is not a list of whole numbers")
    entry = TensorEntry(dtype, tuple(shape), *offsets)
    if entry.begin > entry.end or entry.numel * DTYPE_BITS[dtype] != 8 * (entry.end - entry.begin):
        raise _damaged(path, f"the size of {name} does not fit its shape")
    return entry


def _is_counts(value: Any, longest: int) -> TypeGuard[list[int]]:
    return (isinstance(value, list) and len(value) <= longest
            and all(type(item) is int and 0 <= item < 2**62 for item in value))


def _require_gapless(tensors: dict[str, TensorEntry], data_bytes: int, path: Path) -> None:
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin < position:
            raise _damaged(path, f"{name} overlaps another tensor")
        if entry.begin > position:
            raise _damaged(path, f"there is a gap before {name}")
        position = entry.end
    if position > data_bytes:
        raise _damaged(path, f"it is cut off, {position - data_bytes:,} bytes are missing at its end")
    if position < data_bytes:
        raise _damaged(path, f"{data_bytes - position:,} bytes at its end belong to no tensor")


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path} is damaged: {reason}.", "Fetch the model again.")
