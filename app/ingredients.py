"""What may take part in a chat: an adapter's folder, what it is called, and which of its parts have a strength."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.adapter_folder import (
    BOTTLENECK_CONFIG,
    BOTTLENECK_FOLDER,
    CONFIG_NAME,
    PREFIX_FOLDER,
    read_object,
)
from core.errors import CoreError

PREFIX, BOTTLENECK = "the prefix", "the bottleneck adapters"
_PREFIX_TYPE = "PREFIX_TUNING"  # PEFT's name


@dataclass(frozen=True)
class Ingredient:
    """An adapter that may take part: its folder and what it is called. `whole`: a fine-tuned model, which has no
    strength and stands alone. `beside` says what in it is on or off, whatever the strength; with `only_beside` there
    is nothing else."""

    path: Path
    name: str
    whole: bool = False
    beside: tuple[str, ...] = ()
    only_beside: bool = False

    @property
    def has_strength(self) -> bool:
        """True where something in it can be stronger or weaker."""
        return not (self.whole or self.only_beside)

    @property
    def beside_words(self) -> str:
        """`the prefix and the biases`."""
        return " and ".join(filter(None, (", ".join(self.beside[:-1]), *self.beside[-1:])))


def ingredient(path: Path, name: str, *, whole: bool = False) -> Ingredient:
    """The adapter in a folder, from its small files alone; what they do not tell is taken for an ordinary one."""
    if whole:
        return Ingredient(path, name, whole=True)
    config = _config(path / CONFIG_NAME)
    beside = []
    if config.get("peft_type") == _PREFIX_TYPE or (path / PREFIX_FOLDER / CONFIG_NAME).is_file():
        beside.append(PREFIX)
    if (path / BOTTLENECK_FOLDER / BOTTLENECK_CONFIG).is_file():
        beside.append(BOTTLENECK)
    if config.get("bias") not in (None, "none"):
        beside.append("the biases")
    if config.get("modules_to_save"):
        beside.append("the modules that are trained whole")
    if config.get("trainable_token_indices"):
        beside.append("the new tokens")
    low_rank = (path / CONFIG_NAME).is_file() and config.get("peft_type") != _PREFIX_TYPE
    return Ingredient(path, name, beside=tuple(beside), only_beside=bool(beside) and not low_rank)


def _config(path: Path) -> Mapping[str, Any]:
    try:
        return read_object(path)
    except (CoreError, OSError):
        return {}  # told when it is loaded
