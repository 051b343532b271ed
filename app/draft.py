"""The run that is being put together: its config, what is known of its model and data, its problems."""

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from PySide6.QtCore import QObject, QTimer, Signal, Slot
from PySide6.QtGui import QUndoStack

from app.config_change import ConfigChange, changed_config
from app.operations import Operations
from app.refusals import Refusals
from core.config import STARTER, RunConfig
from core.events import DataScanned, Failed, ModelInspected, Progress, Result
from core.jobs import InspectModel, PrepareStarter, ScanData
from core.records import ModelCard
from core.run_problems import Problem, problems

SLICE_SECONDS = 0.5  # of a scan, after which other short jobs have their turn


class Draft(QObject):
    """Holds one RunConfig and keeps its model card, data scan and problems up to date.

    Pages read the properties and listen to the signals; they change it through `set_value`,
    `set_values` (both can be undone) and `replace`.

    Signals:
        config_changed(RunConfig): after every change.
        card_changed(ModelCard | None): None while the model is not known.
        scan_changed(DataScanned | None): None while the data is not measured.
        measuring(): the data is being measured from now on.
        part_scanned(DataScanned): what is known of the data while it is measured.
        problems_changed(tuple[Problem, ...]): everything that keeps the run from starting.
        checking_changed(bool): True while the model or the data is being looked at.
        model_progress(Progress | None): the starter model is being prepared.
    """

    config_changed = Signal(object)
    card_changed = Signal(object)
    scan_changed = Signal(object)
    measuring = Signal()
    part_scanned = Signal(object)
    problems_changed = Signal(object)
    checking_changed = Signal(bool)
    name_changed = Signal(str)
    model_progress = Signal(object)

    def __init__(self, operations: Operations, config: RunConfig | None = None, parent: QObject | None = None,
                 *, debounce_ms: int = 400) -> None:
        super().__init__(parent)
        self._operations = operations
        self._config = config or RunConfig()
        self._name = ""
        self._card: ModelCard | None = None
        self._scan: DataScanned | None = None
        self._refusals = Refusals()
        self._failures: dict[str, Problem] = {}  # by the config section that was looked at
        self._problems: tuple[Problem, ...] = ()
        self._inspecting = False
        self._scanning = False
        self._was_checking = False
        self._inspected: tuple[object, ...] = ()
        self._scanned: tuple[object, ...] = ()
        self.undo_stack = QUndoStack(self)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(debounce_ms)
        self._timer.timeout.connect(self._look)
        operations.changed.connect(self._update_problems)
        self._update_problems()

    @property
    def config(self) -> RunConfig:
        """The run as it would be started now."""
        return self._config

    @property
    def name(self) -> str:
        """What the run will be called; "" lets the date name it."""
        return self._name

    @property
    def card(self) -> ModelCard | None:
        """The chosen model, once it was inspected."""
        return self._card

    @property
    def scan(self) -> DataScanned | None:
        """The chosen data, once it was measured with the model's tokenizer."""
        return self._scan

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What keeps the run from starting, each with the path of its field."""
        return self._problems

    @property
    def checking(self) -> bool:
        """True while the model or the data is still being looked at."""
        return self._inspecting or self._scanning or self._timer.isActive()

    @property
    def ready(self) -> bool:
        """True if the run can be started."""
        return not self._problems and not self.checking and self._card is not None

    def problems_of(self, section: str) -> list[Problem]:
        """The problems of one section: "model", "data", "adapter" or "training"."""
        return [problem for problem in self._problems if problem.field.split(".")[0] == section]

    def value(self, path: str) -> Any:
        """The value of a field, for example `value("adapter.rank")`."""
        section, field = path.split(".")
        return getattr(getattr(self._config, section), field)

    def set_value(self, path: str, value: Any) -> bool:
        """Change one field as a step that can be undone. False if the value is refused; see `problems`."""
        return self.set_values({path: value})

    def set_values(self, values: dict[str, Any]) -> bool:
        """Change several fields as one step. False, and nothing changed, if one is refused."""
        self._refusals.forget(values)
        try:
            changed = changed_config(self._config, values)
        except ValidationError as error:
            self._refusals.tell_errors(self._config, error)
            self._update_problems()
            return False
        if changed != self._config:
            self.undo_stack.push(ConfigChange(self, self._config, changed, tuple(values)))
        else:
            self._update_problems()
        return True

    @property
    def refused(self) -> frozenset[str]:
        """Fields that show something which the config does not take."""
        return self._refusals.paths

    def set_error(self, path: str, message: str) -> None:
        """Mark a field whose text is no value at all; cleared by the next `set_value` of that field."""
        self._refusals.tell(path, message)
        self._update_problems()

    def replace(self, config: RunConfig, name: str = "") -> None:
        """Take over a whole config (a sample, an opened run file, a repeated run); clears the undo steps."""
        self._refusals.clear()
        self.set_name(name)
        self.undo_stack.clear()
        self.apply(config)

    def set_name(self, name: str) -> None:
        """Name the run; "" lets the date name it."""
        if name != self._name:
            self._name = name
            self.name_changed.emit(name)

    def look_again(self) -> None:
        """Inspect model and data anew, for example after a file was changed or a model imported."""
        self._inspected = self._scanned = ()
        self._failures.clear()
        self._schedule(0)

    def forget_refused(self) -> None:
        """Take back the marks of fields that were refused."""
        self._refusals.clear()

    def apply(self, config: RunConfig) -> None:
        """Set the config without an undo step; used by the steps themselves."""
        self._refusals.keep_common(self._config, config)
        self._config = config
        self.config_changed.emit(config)
        if self._model_key() != self._inspected:
            self._failures.pop("model", None)
            self._set_card(None)
        if self._data_key() != self._scanned:
            self._failures.pop("data", None)
            self._set_scan(None)
        self._schedule()
        self._update_problems()

    def _schedule(self, delay_ms: int | None = None) -> None:
        if self._model_key() == self._inspected and self._data_key() == self._scanned:
            self._timer.stop()
        elif delay_ms is None:
            self._timer.start()
        else:
            self._timer.start(delay_ms)
        self._report_checking()

    def _model_key(self) -> tuple[object, ...]:
        return (self._config.model.path,)

    def _data_key(self) -> tuple[object, ...]:
        data = self._config.data
        return (self._config.model.path, data.train, data.max_length, data.train_on)

    @Slot()
    def _look(self) -> None:
        if self._model_key() != self._inspected:
            self._inspect()
        elif self._data_key() != self._scanned:
            self._measure()
        self._report_checking()

    def _inspect(self) -> None:
        self._inspected = self._model_key()
        self._scanned = ()
        path = self._config.model.path
        self._set_card(None)
        if not path:
            self._inspecting = False
            return
        self._inspecting = True
        if path == STARTER:
            (self._operations.work(PrepareStarter(), latest="inspect")
             .on(Progress, self.model_progress.emit)
             .on(Result, lambda _: self._ask_card(path))
             .on(Failed, partial(self._model_failed, path=path)).start())
        else:
            self._ask_card(path)

    def _ask_card(self, path: str) -> None:
        self.model_progress.emit(None)
        if path == self._config.model.path:
            (self._operations.work(InspectModel(path), latest="inspect")
             .on(ModelInspected, partial(self._model_inspected, path=path))
             .on(Failed, partial(self._model_failed, path=path)).start())

    def _model_inspected(self, event: ModelInspected, path: str) -> None:
        if path != self._config.model.path:
            return  # another one was chosen meanwhile
        self._inspecting = False
        self._set_card(event.card)
        self._measure()
        self._update_problems()
        self._report_checking()

    def _model_failed(self, event: Failed, path: str) -> None:
        if path != self._config.model.path:
            return
        self._inspecting = False
        self._failures["model"] = Problem("model.path", event.message, event.hint)
        self.model_progress.emit(None)
        self._update_problems()
        self._report_checking()

    def _measure(self) -> None:
        key = self._scanned = self._data_key()
        self._set_scan(None)
        self._scanning = self._card is not None and bool(self._config.data.train)
        if self._scanning:
            self._measure_on(key)
            self.measuring.emit()

    def _measure_on(self, key: tuple[object, ...]) -> None:
        """One slice of the scan; between two of them the engine shows rows or answers in the chat."""
        if self._scanning and key == self._data_key():
            operation = self._operations.work(ScanData(self._config, SLICE_SECONDS), latest="scan")
            operation.finished.connect(lambda _result: self._measure_on(key))
            (operation.on(DataScanned, partial(self._data_scanned, key=key))
             .on(Failed, partial(self._data_failed, key=key)).start())

    def _data_scanned(self, event: DataScanned, key: tuple[object, ...]) -> None:
        if key != self._data_key():
            return  # other data or limits were chosen meanwhile
        if event.measured < 1:
            self.part_scanned.emit(event)
            return
        self._scanning = False
        self._set_scan(event)
        self._update_problems()
        self._report_checking()

    def _data_failed(self, event: Failed, key: tuple[object, ...]) -> None:
        if key != self._data_key():
            return
        self._scanning = False
        self._failures["data"] = Problem("data.train", event.message, event.hint)
        self._update_problems()
        self._report_checking()

    def _set_card(self, card: ModelCard | None) -> None:
        if card != self._card:
            self._card = card
            self.card_changed.emit(card)

    def _set_scan(self, scan: DataScanned | None) -> None:
        if scan != self._scan:
            self._scan = scan
            self.scan_changed.emit(scan)

    def _report_checking(self) -> None:
        if self.checking != self._was_checking:
            self._was_checking = self.checking
            self.checking_changed.emit(self.checking)

    @property
    def devices(self) -> dict[str, int]:
        """Memory in bytes by the name of each device, the best first; empty before an engine has told them."""
        return self._operations.client("train").hardware.devices

    @Slot()
    def _update_problems(self) -> None:
        found = (*self._refusals.problems(), *self._failures.values(),
                 *problems(self._config, self._card, self._scan, tuple(self.devices)))
        if found != self._problems:
            self._problems = found
            self.problems_changed.emit(found)


def suggested_name(config: RunConfig) -> str:
    """A name for a run on these files: the first file's name without its ending."""
    return Path(config.data.train[0]).stem if config.data.train else ""
