"""What a QLoRA run is merged into: a row of the export wizard, shown for such runs alone."""

from typing import cast

from PySide6.QtCore import QSignalBlocker, Signal, Slot
from PySide6.QtWidgets import QComboBox, QVBoxLayout, QWidget

from app import theme
from app.export_choice import MergeInto
from app.widgets import label
from core.config import QLoraConfig, RunConfig

_TITLES: dict[MergeInto, str] = {"original": "The original weights", "dequantised": "The weights that training saw"}
_SENTENCES: dict[MergeInto, str] = {
    "original": "The adapter is added to the base model as it is: usually the better model, but it answers a little "
                "other than in Chat; by how much stands in the receipt.",
    "dequantised": "The adapter is added to the 4-bit or 8-bit weights, written out in full: it answers as in Chat, "
                   "with the rounding of the quantised base in it.",
}


def is_quantised(config: RunConfig | None) -> bool:
    """True for a run whose base was held in 4 or 8 bits."""
    return config is not None and isinstance(config.adapter, QLoraConfig)


class MergeChoice(QWidget):
    """A box with both choices, and a sentence on the chosen one.

    Signals: `changed()` when the person chose.
    """

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.box = QComboBox()
        self.box.setAccessibleName("Merge into")
        for value, title in _TITLES.items():
            self.box.addItem(title, value)
        self.sentence = label("", "help", wrap=True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(theme.GRID)
        layout.addWidget(self.box)
        layout.addWidget(self.sentence)
        self.box.currentIndexChanged.connect(self._chosen)
        self._tell()

    @property
    def value(self) -> MergeInto:
        """What is chosen."""
        return cast(MergeInto, self.box.currentData())

    def show_value(self, value: MergeInto) -> None:
        """Show a choice without telling it as a change."""
        with QSignalBlocker(self.box):
            self.box.setCurrentIndex(self.box.findData(value))
        self._tell()

    @Slot()
    def _chosen(self) -> None:
        self._tell()
        self.changed.emit()

    def _tell(self) -> None:
        self.sentence.setText(_SENTENCES[self.value])
        self.box.setAccessibleDescription(_SENTENCES[self.value])
