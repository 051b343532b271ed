"""workbench.json: the small card beside a model of the library that says where it came from."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from core import files
from core.errors import ModelError
from core.models.json_file import read_object

CARD_NAME = "workbench.json"
_MAX_CARD_BYTES = 256 * 1024


@dataclass(frozen=True)
class OriginCard:
    """Where a model of the library came from. `source_sha256` "" where the source is not one file."""

    origin: str  # a sentence
    source_name: str
    source_bytes: int
    source_sha256: str
    imported: str  # ISO date and time, UTC


def new_card(origin: str, source_name: str, source_bytes: int, source_sha256: str) -> OriginCard:
    """A card with the present time."""
    return OriginCard(origin, source_name, source_bytes, source_sha256,
                      datetime.now(UTC).isoformat(timespec="seconds"))


def write_card(folder: Path, card: OriginCard) -> None:
    """Write workbench.json into `folder`."""
    files.write_text(folder / CARD_NAME, json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n")


def read_card_file(folder: Path) -> OriginCard | None:
    """The card of a folder; None where there is none or it can not be read as one."""
    if not (folder / CARD_NAME).is_file():
        return None
    try:
        values = read_object(folder / CARD_NAME, _MAX_CARD_BYTES)
        return OriginCard(str(values["origin"]), str(values["source_name"]), int(values["source_bytes"]),
                          str(values["source_sha256"]), str(values["imported"]))
    except (ModelError, KeyError, TypeError, ValueError):
        return None
