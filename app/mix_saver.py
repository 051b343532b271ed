"""Asks how a mix is saved, lets the engine write it, and says what became of it."""

from collections.abc import Sequence

from PySide6.QtCore import QObject, Qt, Signal, Slot
from PySide6.QtWidgets import QWidget

from app.adapter_mixer import AdapterRow
from app.mix_dialog import MixDialog
from app.operations import Operations
from core import events
from core.jobs import MixAdapters

EXACT = 1e-5  # relative; what rounding to fp32 leaves of a mix that is the exact sum


class MixSaver(QObject):
    """Signals: `told(str, bool)`: a sentence for the person, and whether something went wrong."""

    told = Signal(str, bool)

    def __init__(self, operations: Operations, parent: QWidget) -> None:
        super().__init__(parent)
        self._operations, self._window = operations, parent
        self.dialog: MixDialog | None = None

    def ask(self, rows: Sequence[AdapterRow]) -> None:
        """Ask for the way and the folder, then save what counts of these rows."""
        dialog = MixDialog(tuple(row.use for row in rows), [row.ingredient.name for row in rows], self._window)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.accepted.connect(lambda: self._save(dialog.job()))
        self.dialog = dialog
        dialog.open()

    def _save(self, job: MixAdapters) -> None:
        self.told.emit("Saving the mix…", False)
        operation = self._operations.work(job).on(events.Failed, self._failed)
        operation.finished.connect(self._saved)
        operation.start()

    @Slot(object)
    def _saved(self, result: events.Result) -> None:
        values = result.values
        error = float(values.get("relative_error") or 0.0)
        close = "It is the exact weighted sum." if error < EXACT else f"It is off the exact sum by {error:.1%}."
        self.told.emit(f"Saved as an adapter of rank {values.get('rank')} in {values.get('path')}. {close}", False)

    @Slot(object)
    def _failed(self, failure: events.Failed) -> None:
        self.told.emit(f"{failure.message} {failure.hint}".strip(), True)
