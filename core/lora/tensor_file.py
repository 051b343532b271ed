"""Tensors to the disk as safetensors, whole or not at all."""

import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from core import files

_SYSTEM_ERROR = re.compile(r"os error (\d+)")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors`, on the CPU and contiguous, as one safetensors file.

    Raises:
        OSError: what the system refused, such as a full disk, with its number.
    """
    with files.atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            # the library puts the system's error into its own words
            found = _SYSTEM_ERROR.search(str(error))
            if found is None:
                raise
            raise _system_error(int(found[1]), path) from error


def _system_error(number: int, path: Path) -> OSError:
    if os.name == "nt":
        return OSError(0, "", str(path), number)  # Windows counts differently; this finds the errno
    return OSError(number, os.strerror(number), str(path))
