"""A digest of this program's own code, a part of the name of what is kept on the disk and depends on that code."""

import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

_CORE = Path(__file__).parent


@cache
def code_digest(rooms: tuple[str, ...], libraries: tuple[str, ...]) -> str:
    """Of the code in these rooms of the core with all below them, and of those of these libraries that are there."""
    digest = hashlib.blake2b(digest_size=16)
    for name in (*libraries, "lora-workbench"):
        digest.update(f"{name} {_version(name)}\0".encode())
    for room in rooms:
        for file in sorted((_CORE / room).rglob("*.py")):
            digest.update(f"{file.relative_to(_CORE)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"
