"""Where an export goes: a new folder, on a disk with room."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from core import files
from core.errors import CoreError


def require_space(out: Path, needed: int) -> None:
    """Raises CoreError unless the disk of `out` has so many bytes free."""
    free = files.free_bytes(out.parent)
    if free < needed:
        raise CoreError(f"The export needs {needed:,} bytes, but only {free:,} bytes are free at {out.parent}.",
                        "Free some space, choose another disk, or a smaller number type.")


@contextlib.contextmanager
def free_place(out: Path) -> Iterator[None]:
    """Make sure that `out` can become a new folder; an empty one gives way and comes back if nothing was made."""
    was_empty = False
    if out.is_dir():
        if any(out.iterdir()):
            raise CoreError(f"The folder {out} is not empty.", "Choose a new folder, so that nothing is overwritten.")
        was_empty = True
    elif out.exists() or out.is_symlink():
        raise CoreError(f"{out} is a file.", "Choose a new folder.")
    files.require_writable(out.parent)
    if was_empty:
        out.rmdir()
    try:
        yield
    finally:
        if was_empty:
            out.mkdir(exist_ok=True)


@contextlib.contextmanager
def words_for_full_disk(out: Path) -> Iterator[None]:
    """Say a disk that became full meanwhile in plain words."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CoreError(f"The disk became full while {out.name} was written; {files.free_bytes(out.parent):,} bytes "
                        "are free now that it was removed again.", "Free some space and export again.") from error
