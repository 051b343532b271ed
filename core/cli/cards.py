"""Model cards kept on the disk: to describe a model again that has not changed needs no torch."""

import contextlib
import hashlib
import importlib.metadata
from pathlib import Path

from core import events, files
from core.events import ModelInspected
from core.paths import cache_root
from core.records import ModelCard

_KEPT_CARDS = 64


def kept_card(model: Path) -> ModelCard | None:
    """The card of an earlier inspection of exactly these files; None where there is none."""
    with contextlib.suppress(OSError, ValueError):  # a damaged one is made again
        event = events.from_json(_card_path(model).read_bytes())
        if isinstance(event, ModelInspected):
            return event.card
    return None


def keep_card(model: Path, card: ModelCard) -> None:
    """Remember a card; without a place to write it is made again next time."""
    with contextlib.suppress(OSError):
        path = _card_path(model)
        files.write_text(path, events.to_json(ModelInspected(card)))
        kept = sorted(path.parent.glob("*.json"), key=lambda item: item.stat().st_mtime)
        for old in kept[:-_KEPT_CARDS]:
            old.unlink(missing_ok=True)


def _card_path(model: Path) -> Path:
    """A name made of what the card depends on: the files, their sizes and times, and who read them."""
    parts = [str(model.resolve()), importlib.metadata.version("lora-workbench"),
             importlib.metadata.version("transformers")]
    for file in sorted(model.iterdir()):
        status = file.stat()
        parts.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return cache_root() / "cards" / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:32]}.json"
