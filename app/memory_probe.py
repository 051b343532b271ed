"""How much memory the run that is put together needs: estimated at once, and measured where the person asks."""

import contextlib

from PySide6.QtCore import QObject, Signal, Slot

from app import machine
from app.draft import Draft
from app.operations import Operation, Operations
from core.config import RunConfig
from core.errors import AdapterError
from core.estimate import Estimate, estimate, measured, on_device, spread_here, with_checkpointing
from core.events import Failed, MemoryMeasured, Progress
from core.jobs import ProbeMemory


class MemoryProbe(QObject):
    """Holds the last measurement and corrects the estimates of runs that are like the measured one.

    Signals: `changed()`: the estimate, or what the measurement does.
    """

    changed = Signal()

    def __init__(self, draft: Draft, operations: Operations, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._draft = draft
        self._operations = operations
        self._operation: Operation | None = None
        self._measured_run: tuple[object, ...] = ()
        self._kind: tuple[object, ...] = ()
        self._difference = 0  # bytes that the measurement found more than was estimated
        self._asked: tuple[object, ...] = ()
        self._found: Estimate | None = None
        self.stage = ""  # what the measurement does now
        self.failure = ""  # why the last one gave nothing
        draft.config_changed.connect(lambda _config: self._draft_changed())
        draft.card_changed.connect(lambda _card: self._draft_changed())
        draft.scan_changed.connect(lambda _scan: self._draft_changed())
        draft.problems_changed.connect(lambda _problems: self.changed.emit())
        draft.checking_changed.connect(lambda _checking: self.changed.emit())
        operations.changed.connect(self.changed)  # the engine may have found a GPU

    @property
    def busy(self) -> bool:
        """True while it is measured."""
        return self._operation is not None

    @property
    def ready(self) -> bool:
        """True where the run could be started, and so be measured."""
        return self._draft.ready and not self.busy

    @property
    def is_measured(self) -> bool:
        """True where exactly this run was measured."""
        return self._measured_run == self._run()

    @property
    def is_corrected(self) -> bool:
        """True where a run of this kind was measured."""
        return self._kind == _kind_of(self._draft.config)

    def estimate(self) -> Estimate | None:
        """What the run needs, or None where the model is not known or the target layers match nothing."""
        found = self._plain()
        return measured(found, self._difference) if found is not None and self.is_corrected else found

    def measure(self) -> None:
        """Train a step on the longest rows of the chosen data."""
        found = self._plain()
        expected = self._estimated(1)  # what measures is one process, which holds the whole base
        if found is None or expected is None or not self.ready:
            return
        run, config = self._run(), self._draft.config
        self.failure, self.stage = "", "Waiting for the engine…"

        def take(event: MemoryMeasured) -> None:
            self._measured_run, self._kind = run, _kind_of(config)
            self._difference = event.bytes - expected.memory_bytes

        self._operation = self._operations.work(ProbeMemory(config)).on(Progress, self._progress) \
            .on(MemoryMeasured, take).on(Failed, self._failed)
        self._operation.ended.connect(self._ended)
        self._operation.start()
        self.changed.emit()

    def cancel(self) -> None:
        """End the measurement."""
        if self._operation is not None:
            self._operation.cancel()

    def _plain(self) -> Estimate | None:
        """As estimated; kept, as several places show it."""
        draft = self._draft
        asked = (draft.config, draft.card, draft.scan, tuple(draft.devices))
        if asked != self._asked:
            gpus = 1 if draft.card is None else spread_here(draft.config, draft.card, draft.devices)
            self._asked, self._found = asked, self._estimated(gpus)
        return self._found

    def _estimated(self, gpus: int) -> Estimate | None:
        """The estimate where the base is spread over so many GPUs."""
        draft = self._draft
        if draft.card is None:
            return None
        config = on_device(draft.config, list(draft.devices))
        with contextlib.suppress(AdapterError):  # told at its field
            config = with_checkpointing(config, draft.card, self.memory_bytes, draft.scan, gpus)
            return estimate(config, draft.card, draft.scan, gpus)
        return None

    @property
    def memory_bytes(self) -> int:
        """Of the device on which the run would be computed."""
        draft = self._draft
        return draft.devices.get(on_device(draft.config, list(draft.devices)).training.device, machine.memory_bytes())

    def _run(self) -> tuple[object, ...]:
        return (self._draft.config, self._draft.scan)

    def _draft_changed(self) -> None:
        self.failure = ""
        self.changed.emit()

    def _progress(self, progress: Progress) -> None:
        self.stage = f"{progress.stage}…"
        self.changed.emit()

    def _failed(self, failure: Failed) -> None:
        self.failure = f"{failure.message} {failure.hint}".strip()

    @Slot()
    def _ended(self) -> None:
        self._operation = None
        self.changed.emit()


def _kind_of(config: RunConfig) -> tuple[object, ...]:
    """Runs that agree in this are estimated with the same error, about."""
    training = config.training
    return (config.model.path, config.trained, training.device, training.dtype, training.packing,
            training.activation_checkpointing)
