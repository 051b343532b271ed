"""Which models on this machine are the base of an adapter, and what a base is called where others read it."""

import re
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Literal

from core.control import Control
from core.errors import AdapterError, ModelError
from core.events import Event, Progress
from core.lora.adapter_file import AdapterFile, read_origin
from core.lora.extra_files import extra_misfit
from core.lora.fit import misfit as shapes_misfit
from core.models.inspect import fingerprint, read_card
from core.models.library import display_name, list_models
from core.models.safety import check_files
from core.paths import runs_root
from core.records import BaseMatch, ModelCard

_PUBLIC_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # a name of the hub or of the library, no place on a disk


def find_bases(adapter: AdapterFile, control: Control) -> Generator[Event, None, tuple[BaseMatch, ...]]:
    """The models on this machine that the adapter fits: the very one it was trained on, else all whose shapes fit."""
    candidates = _candidates(adapter)
    trained_on = adapter.origin.get("base_fingerprint")
    for done, path in enumerate(candidates if trained_on else []):
        control.check()
        yield Progress("Looking for its base model", done, len(candidates), "models")
        if _fingerprint(path) == trained_on:
            return (BaseMatch(display_name(path), path, "same"),)
    found = []
    for done, path in enumerate(candidates):
        control.check()
        yield Progress("Comparing shapes", done, len(candidates), "models")
        try:
            card = read_card(path)
        except ModelError:
            continue  # a model that can not be used is no base of anything
        if not misfit(adapter, card):
            found.append(BaseMatch(card.name, path, "fits"))
    named = str(adapter.config.get("base_model_name_or_path") or "")
    return tuple(sorted(found, key=lambda match: match.name not in (named, Path(named).name)))


def trained_base(adapter: AdapterFile) -> Path | None:
    """The very model that the adapter was trained on, where it is on this machine."""
    trained_on = adapter.origin.get("base_fingerprint")
    return next((path for path in _candidates(adapter) if trained_on and _fingerprint(path) == trained_on), None)


def _candidates(adapter: AdapterFile) -> list[Path]:
    """Where the base may be: what the adapter itself names, all models on this machine, what its runs trained on."""
    named = [adapter.origin.get("base_path"), adapter.config.get("base_model_name_or_path")]
    places = [*_folders(named), *(entry.path for entry in list_models() if entry.state == "ready"),
              *_folders(_bases_of_runs())]
    unique: dict[Path, Path] = {}
    for path in places:
        unique.setdefault(path.resolve(), path)
    return list(unique.values())


def _folders(named: Iterable[Any]) -> list[Path]:
    return [Path(value) for value in named if isinstance(value, str) and value and Path(value).is_dir()]


def _bases_of_runs() -> list[Any]:
    """A model outside of the library is known only to the runs that trained on it."""
    found = []
    for folder in sorted(runs_root().iterdir()) if runs_root().is_dir() else []:
        try:
            found.append(read_origin(folder / "adapter").get("base_path"))
        except AdapterError:
            continue  # a damaged run names no model
    return found


def _fingerprint(path: Path) -> str:
    try:
        return fingerprint(path, check_files(path))
    except (ModelError, OSError):
        return ""


def match_of(adapter: AdapterFile, found: str) -> Literal["same", "fits"]:
    """Whether a model with this fingerprint is the one of the training."""
    return "same" if adapter.origin.get("base_fingerprint") == found else "fits"


def misfit(adapter: AdapterFile, card: ModelCard) -> str:
    """Why an adapter does not fit a model, naming the module; "" where it does."""
    return shapes_misfit(adapter.contents, card.modules) or extra_misfit(adapter.extras, card.modules)


def require_fit(adapter: AdapterFile, card: ModelCard) -> None:
    """Raises AdapterError, naming the module, unless the adapter fits the model."""
    reason = misfit(adapter, card)
    if reason:
        raise AdapterError(f"The adapter in {adapter.path} does not fit {card.name}: {reason}.",
                           "Choose the base model that the adapter was trained on.")


def public_name(named: str, base_name: str) -> str:
    """What an export calls the base that its adapter names: where it lies on this machine is nobody else's business."""
    return named if _PUBLIC_NAME.fullmatch(named) else base_name
