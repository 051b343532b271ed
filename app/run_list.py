"""The run folders that can be asked and exported, found by names and times, but for runs that are not at their end:
quick enough for a click."""

from dataclasses import dataclass
from pathlib import Path

from core.adapter_folder import is_adapter_folder
from core.config import FullConfig
from core.errors import CoreError
from core.runs.folder import RunFolder


@dataclass(frozen=True)
class AdapterChoice:
    """One adapter of a run: `checkpoint` is "" for the final one, else the checkpoint folder's name. `whole`: the model
    that full fine-tuning left, or one of its checkpoints."""

    title: str
    checkpoint: str
    path: Path
    whole: bool = False


@dataclass(frozen=True)
class RunChoice:
    """A run with at least one adapter, the final one first, then the newest checkpoint."""

    path: Path
    adapters: tuple[AdapterChoice, ...]

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.path.name


def runs_with_adapters(root: Path) -> list[RunChoice]:
    """All runs below `root` that have an adapter, the newest first. Raises OSError where `root` can not be read."""
    if not root.is_dir():
        return []
    folders = [path for path in root.iterdir() if not path.name.startswith(".") and (path / "run.toml").is_file()]
    folders.sort(key=lambda path: (path / "run.toml").stat().st_mtime, reverse=True)
    choices = [run_choice(path) for path in folders]
    return [choice for choice in choices if choice.adapters]


def run_choice(path: Path) -> RunChoice:
    """The adapters of one run folder."""
    run = RunFolder(path)
    found = []
    whole = run.model.is_dir()
    if whole:
        found.append(AdapterChoice("Final model", "", run.model, whole))
    elif is_adapter_folder(run.adapter):
        found.append(AdapterChoice("Final adapter", "", run.adapter))
    for folder in reversed(run.checkpoint_folders()):
        if (folder / "manifest.json").is_file():
            whole = whole or (not found and _is_full(run))  # no final one tells it yet
            step = int(folder.name.removeprefix("step-")) if folder.name[5:].isdigit() else 0
            found.append(AdapterChoice(f"Step {step:,}", folder.name, folder, whole))
    return RunChoice(path, tuple(found))


def _is_full(run: RunFolder) -> bool:
    try:
        return isinstance(run.config().adapter, FullConfig)
    except (CoreError, OSError):
        return False  # told where the run is opened
