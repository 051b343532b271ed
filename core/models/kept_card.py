"""The card of a model folder, kept on the disk until one of the folder's files changes.

To describe a model is to build it without memory, to read samples of its weights and its whole tokenizer; every run
and every visit of the Model page asks for it. Name, size, place and time of change of every file stand for the
content, as for a build tool; what must hold before a model is loaded is checked each time.
"""

import hashlib
import json
import os
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import transformers

from core import files
from core.errors import CoreError
from core.events import ModelInspected, from_plain, to_plain
from core.models.json_file import read_object
from core.paths import cache_root
from core.records import ModelCard

_LAYOUT = 1  # of what a card says; another number makes every kept one old
_MAX_BYTES = 64 * 1024**2


def kept_card(path: Path, describe: Callable[[], ModelCard]) -> ModelCard:
    """What `describe` says of the model in `path`; it is not asked where nothing changed since the last time."""
    place = cache_root() / "cards" / f"{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]}.json"
    state = _state(path)
    found = _read(place, state)
    if found is not None:
        return found
    card = describe()
    try:
        files.write_text(place, json.dumps({"state": state, "card": to_plain(ModelInspected(card))}))
    except OSError:
        return card  # what can not be kept is described again next time
    return card


def _state(path: Path) -> list[Any]:
    """All on which the card depends: the place, the files, and the libraries that read them."""
    with os.scandir(path) as entries:
        found = sorted(((entry.name, entry.stat()) for entry in entries if entry.is_file()), key=itemgetter(0))
    return [_LAYOUT, str(path), torch.__version__, transformers.__version__,
            [[name, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino] for name, info in found]]


def _read(place: Path, state: list[Any]) -> ModelCard | None:
    if not place.is_file():
        return None
    try:
        kept = read_object(place, _MAX_BYTES)
        event = from_plain(kept["card"]) if kept.get("state") == state else None
    except (CoreError, OSError, ValueError, KeyError, TypeError):
        return None  # a damaged one is written anew
    return event.card if isinstance(event, ModelInspected) else None
