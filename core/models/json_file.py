"""Reading JSON that somebody else wrote: regular files only, bounded in size and depth."""

import json
import stat
from pathlib import Path
from typing import Any

from core.errors import ModelError

MAX_DEPTH = 64


def require_regular(path: Path) -> int:
    """The size in bytes of a regular file (links are followed).

    Raises:
        ModelError: missing, or a pipe, device or folder, on which reading could wait for ever.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(f"{path} can not be read: {error.strerror or error}.") from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a regular file.", "Fetch the model again.")
    return status.st_size


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The JSON object in a file; the same name twice is refused.

    Raises:
        ModelError: not a regular file, too large, not JSON, not an object, or nested too deep.
    """
    size = require_regular(path)
    if size > max_bytes:
        raise ModelError(f"{path} is {size:,} bytes long; at most {max_bytes:,} bytes are read of such a file.")
    try:
        with open(path, "rb") as file:
            return parse_object(file.read(max_bytes + 1), str(path))
    except OSError as error:
        raise ModelError(f"{path} can not be read: {error.strerror or error}.") from None


def parse_object(content: bytes, source: str) -> dict[str, Any]:
    """The JSON object in `content`; `source` names it in the error.

    Raises:
        ModelError: not JSON, not an object, a name twice, or nested too deep.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ModelError(f"{source} is nested too deep.") from None
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise ModelError(f"{source} is not valid JSON: {reason}.", "Fetch the model again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{source} does not hold a JSON object.", "Fetch the model again.")
    if _deeper_than(value, MAX_DEPTH):
        raise ModelError(f"{source} is nested too deep.")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:80]!r} stands in it twice")
    return found


def _deeper_than(value: Any, depth: int) -> bool:
    """Level by level instead of by recursion, so that the depth of the input can not hurt."""
    level = [value]
    for _ in range(depth):
        level = [child for item in level for child in _children(item) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _children(item: Any) -> Any:
    return item.values() if isinstance(item, dict) else item
