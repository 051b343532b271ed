"""The run that goes on: started, resumed or attached to; paused, stopped; its events for every page."""

from pathlib import Path
from typing import Literal

from PySide6.QtCore import QObject, Signal

from app.operations import Operation, Operations
from core import events
from core.config import RunConfig
from core.engine.client import attach
from core.jobs import Resume, Train
from core.paths import runs_root
from core.runs.folder import RunFolder

SessionState = Literal["idle", "starting", "running", "paused", "stopping"]


class RunSession(QObject):
    """At most one run at a time.

    Signals:
        began(Path): a run was started, resumed or attached to.
        happened(Event): each of its events.
        state_changed(str): one of `SessionState`.
        paused_changed(bool): the person paused the run, or let it go on.
        failed(Failed): it ended by an error; the run folder keeps what was saved.
        ended(): it is over, in one way or another.
    """

    began = Signal(object)
    happened = Signal(object)
    state_changed = Signal(str)
    paused_changed = Signal(bool)
    failed = Signal(object)
    ended = Signal()

    def __init__(self, operations: Operations, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._operations = operations
        self._operation: Operation | None = None
        self._state: SessionState = "idle"
        self.run_dir: Path | None = None

    @property
    def state(self) -> SessionState:
        """What the run does now."""
        return self._state

    @property
    def active(self) -> bool:
        """True from the start of a run to its end."""
        return self._state != "idle"

    def start(self, config: RunConfig, run_dir: Path) -> None:
        """Train a new run in `run_dir`."""
        self._begin(run_dir, self._operations.train(Train(config, run_dir)))

    def resume(self, run_dir: Path) -> None:
        """Go on with a run from its newest checkpoint."""
        self._begin(run_dir, self._operations.train(Resume(run_dir)))

    def attach(self, run_dir: Path) -> None:
        """Follow a run that another window has started."""
        self._begin(run_dir, self._operations.follow(lambda control: attach(RunFolder(run_dir), control)))

    def pause(self) -> None:
        """Wait before the next micro-batch."""
        if self._operation is not None and self._state == "running":
            self._operation.control.pause()
            self._set_state("paused")
            self.paused_changed.emit(True)

    def go_on(self) -> None:
        """End the pause."""
        if self._operation is not None and self._state == "paused":
            self._operation.control.resume()
            self._set_state("running")
            self.paused_changed.emit(False)

    def stop(self) -> None:
        """End after the present micro-batch and keep the adapter."""
        if self._operation is not None and self._state != "stopping":
            self._set_state("stopping")
            self._operation.cancel()

    def checkpoint(self) -> None:
        """Save a checkpoint after the present step."""
        if self._operation is not None:
            self._operation.control.checkpoint()

    def _begin(self, run_dir: Path, operation: Operation) -> None:
        self.run_dir = run_dir
        self._operation = operation
        operation.happened.connect(self._happened)
        operation.on(events.Failed, lambda _failed: None)  # told by `failed`, below
        operation.failed.connect(self.failed)
        operation.ended.connect(self._ended)
        self._set_state("starting")
        self.began.emit(run_dir)
        operation.start()

    def _happened(self, event: events.Event) -> None:
        if self._state == "starting" and isinstance(event, events.Planned | events.StepDone):
            self._set_state("running")
        self.happened.emit(event)

    def _ended(self) -> None:
        self._operation = None
        self._set_state("idle")
        self.ended.emit()

    def _set_state(self, state: SessionState) -> None:
        if state != self._state:
            self._state = state
            self.state_changed.emit(state)


def living_run() -> Path | None:
    """The run that an engine trains now without a window; None if there is none."""
    for path in sorted(runs_root().glob("*/engine.json")):
        if RunFolder(path.parent).state() == "running":
            return path.parent
    return None
