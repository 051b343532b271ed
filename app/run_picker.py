"""Two boxes that choose a run and one of its adapters."""

from pathlib import Path

from PySide6.QtCore import QSignalBlocker, Qt, Signal, Slot
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QSizePolicy, QWidget

from app import theme
from app.run_list import AdapterChoice, RunChoice, run_choice
from app.widgets import label


class RunPicker(QWidget):
    """A run and its checkpoint.

    Args:
        none: the text of an entry that stands for no run; "" leaves it out.

    Signals: `changed()` when the person chose another run or checkpoint, or `choose` did.
    """

    changed = Signal()

    def __init__(self, none: str = "") -> None:
        super().__init__()
        self._none = none
        self.run_box = QComboBox()
        self.run_box.setAccessibleName("Run")
        self.run_box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.run_box.setMinimumContentsLength(14)
        self.run_box.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.checkpoint_box = QComboBox()
        self.checkpoint_box.setAccessibleName("Checkpoint")
        self.checkpoint_box.setMinimumContentsLength(10)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(theme.GRID)
        self._checkpoint_caption = label("Checkpoint", "help")
        for widget in (label("Run", "help"), self.run_box, self._checkpoint_caption, self.checkpoint_box):
            layout.addWidget(widget)
        self.run_box.currentIndexChanged.connect(self._run_changed)
        self.checkpoint_box.currentIndexChanged.connect(self.changed)
        self.set_runs([])

    def set_runs(self, runs: list[RunChoice]) -> None:
        """Offer these runs; what is chosen stays chosen where it is still there. Does not emit `changed`."""
        before, checkpoint = self.run, self.adapter
        with QSignalBlocker(self.run_box), QSignalBlocker(self.checkpoint_box):
            self.run_box.clear()
            if self._none:
                self.run_box.addItem(self._none, None)
            for run in runs:
                self.run_box.addItem(run.name, run)
            self._select(before.path if before else None, checkpoint.checkpoint if checkpoint else "")

    def choose(self, path: Path, checkpoint: str = "") -> None:
        """Choose a run and a checkpoint ("" is the final adapter, or the newest checkpoint)."""
        with QSignalBlocker(self.run_box), QSignalBlocker(self.checkpoint_box):
            if self._index_of(path) < 0:
                found = run_choice(path)
                if found.adapters:
                    self.run_box.addItem(found.name, found)
            self._select(path, checkpoint)
        self.changed.emit()

    @property
    def run(self) -> RunChoice | None:
        """The chosen run."""
        return self.run_box.currentData()

    @property
    def adapter(self) -> AdapterChoice | None:
        """The chosen adapter of the run."""
        return self.checkpoint_box.currentData() if self.run else None

    def _index_of(self, path: Path | None) -> int:
        for index in range(self.run_box.count()):
            run = self.run_box.itemData(index, Qt.ItemDataRole.UserRole)
            if run is not None and run.path == path:
                return index
        return -1

    def _select(self, path: Path | None, checkpoint: str) -> None:
        index = self._index_of(path)
        if index < 0 and (self._none or path is None):
            index = 0  # else nothing: another run must not slip in for one that is gone
        self.run_box.setCurrentIndex(index)
        self._fill_checkpoints()
        for place in range(self.checkpoint_box.count()):
            if self.checkpoint_box.itemData(place).checkpoint == checkpoint:
                self.checkpoint_box.setCurrentIndex(place)

    def _fill_checkpoints(self) -> None:
        self.checkpoint_box.clear()
        for adapter in self.run.adapters if self.run else ():
            self.checkpoint_box.addItem(adapter.title, adapter)
        self.checkpoint_box.setEnabled(self.checkpoint_box.count() > 1)
        for widget in (self._checkpoint_caption, self.checkpoint_box):
            widget.setVisible(self.checkpoint_box.count() > 0)

    @Slot()
    def _run_changed(self) -> None:
        with QSignalBlocker(self.checkpoint_box):
            self._fill_checkpoints()
        self.changed.emit()
