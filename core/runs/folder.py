"""A run is a folder: its names, its state, its log. Nothing about a run lives anywhere else."""

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from core import events, files
from core.config import RunConfig, dump_config, load_config
from core.errors import ConfigError, CoreError
from core.paths import runs_root

RunState = Literal["new", "running", "finished", "stopped", "failed", "interrupted"]
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{n}" for device in ("com", "lpt") for n in range(10))}


@dataclass(frozen=True)
class RunFolder:
    """Paths and operations of one run folder."""

    path: Path

    @property
    def config_path(self) -> Path:
        """run.toml: the whole RunConfig with every `auto` resolved."""
        return self.path / "run.toml"

    @property
    def events_path(self) -> Path:
        """events.jsonl: every event, appended."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One sub-folder step-000200 for each checkpoint."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The final adapter."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """What full fine-tuning leaves instead: a whole model."""
        return self.path / "model"

    @property
    def final(self) -> Path:
        """What the run has learned: its model where there is one, else its adapter."""
        return self.model if self.model.is_dir() else self.adapter

    @property
    def lock_path(self) -> Path:
        """Held by the process that trains this run."""
        return self.path / ".lock"

    @property
    def engine_path(self) -> Path:
        """Port and token of the engine that trains this run (mode 0600)."""
        return self.path / "engine.json"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step`."""
        return self.checkpoints / f"step-{step:06d}"

    def checkpoint_folders(self) -> list[Path]:
        """Checkpoint folders, oldest first; whether they are whole is for the reader to verify."""
        try:
            inside = list(self.checkpoints.iterdir())
        except (FileNotFoundError, NotADirectoryError):  # none yet, or the run is being deleted
            return []
        found = [path for path in inside if path.name.startswith("step-") and path.is_dir()]
        return sorted(found, key=lambda path: (len(path.name), path.name))  # beyond a million steps as well

    def config(self) -> RunConfig:
        """Read run.toml. Raises ConfigError where it is missing or damaged."""
        if not self.config_path.exists():
            raise ConfigError(f"{self.path} is not a run folder: it has no run.toml.",
                              "Name the folder that `train` told of.")
        return load_config(self.config_path)

    def write_config(self, config: RunConfig) -> None:
        """Write run.toml."""
        files.write_text(self.config_path, dump_config(config))

    def read_events(self, end: int | None = None) -> Iterator[events.Event]:
        """The log from its beginning; a torn last line is left out, a damaged one is skipped.

        Args:
            end: read only so many bytes of the log; None is all of it.
        """
        if not self.events_path.exists():
            return
        position = 0
        with open(self.events_path, "rb") as log:
            for line in log:
                position += len(line)
                if end is not None and position > end:
                    return
                if line.endswith(b"\n"):
                    with contextlib.suppress(ValueError):  # one bad line must not hide a whole run
                        yield events.from_json(line)

    def rewind(self, step: int) -> None:
        """Drop from the log what came after `step`, so that a resumed run leaves no step twice."""
        kept = [event for event in self.read_events() if _is_before(event, step)]
        files.write_text(self.events_path, "".join(events.to_json(event) + "\n" for event in kept))

    def has_begun(self) -> bool:
        """True once a step was done: from then on there is something to lose."""
        return bool(self.checkpoint_folders()) or any(isinstance(event, events.StepDone)
                                                      for event in self.read_events())

    def remove_remains(self) -> None:
        """Remove what a killed process left half written. Call it while the run is held (`locked`)."""
        for folder in (self.path, self.checkpoints):
            for remains in folder.glob(f".*{files.TEMPORARY_SUFFIX}"):
                if remains.is_dir():
                    shutil.rmtree(remains)
                else:
                    remains.unlink()

    def state(self) -> RunState:
        """What became of the run, from its lock and the end of its log."""
        if files.is_locked(self.lock_path):
            return "running"
        state: RunState = "new"
        for event in self.read_events():
            if isinstance(event, events.Finished):
                state = event.outcome
            elif isinstance(event, events.Failed):
                state = "stopped" if event.cancelled else "failed"
            elif isinstance(event, events.Started):
                state = "interrupted"
        return state

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; a second program is refused."""
        with files.exclusive_lock(self.lock_path, f"The run {self.path.name} is being trained by another program."):
            yield

    def record(self, stream: Iterable[events.Event]) -> Iterator[events.Event]:
        """Pass events on after writing them to events.jsonl; a failure is written and raised again."""
        with files.AppendWriter(self.events_path) as log:
            try:
                for event in stream:
                    log.write_line(events.to_json(event), durable=isinstance(event, events.Finished))
                    yield event
            except Exception as error:
                # the disk that is full for the run is full for its log too: the first error counts
                with contextlib.suppress(OSError):
                    log.write_line(events.to_json(events.Failed.of(error)))
                raise


def _is_before(event: events.Event, step: int) -> bool:
    if isinstance(event, events.StepDone | events.Evaluated | events.RanksChosen | events.CheckpointSaved):
        return event.step <= step
    return not isinstance(event, events.Finished | events.Failed | events.Result)


def new_run_path(name: str = "", root: Path | None = None) -> Path:
    """A path for a new run that does not exist yet: `name`, or the date and time, made unique."""
    root = root or runs_root()
    base = safe_name(name) if name else datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return files.free_path(root / base)


def safe_name(name: str) -> str:
    """`name` as a file name that every system takes.

    Raises:
        CoreError: nothing usable is left of it.
    """
    cleaned = _FORBIDDEN.sub("-", name).strip(" .-")[:80].rstrip(" .-")
    if not cleaned or cleaned.split(".")[0].lower() in _RESERVED:
        raise CoreError(f"{name!r} can not be the name of a folder.", "Use letters and digits.")
    return cleaned
