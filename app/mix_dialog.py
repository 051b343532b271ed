"""Asks how a mix of adapters is written: exactly, with a smaller rank, or roughly; and its name."""

from pathlib import Path
from typing import cast

from PySide6.QtCore import Slot
from PySide6.QtWidgets import QComboBox, QDialog, QFileDialog, QLineEdit, QSpinBox, QVBoxLayout, QWidget

from app import theme
from app.export_choice import folder_problem
from app.widgets import ProblemLine, button, column, label, row, spin_margin
from core import files
from core.jobs import AdapterUse, MixAdapters
from core.paths import adapters_root

_WIDTH = 460
_WAYS = (("Exact: side by side, the ranks add up", "cat"), ("Smaller: the best of a rank you choose", "svd"),
         ("Rough: A and B added up, equal ranks only", "linear"))


class MixDialog(QDialog):
    """After `accept`, `job()` is the request.

    Args:
        uses: the adapters that count, with their strengths.
        names: what they are called.
    """

    def __init__(self, uses: tuple[AdapterUse, ...], names: list[str], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Save the mix")
        self._uses = uses
        parts = label("\n".join(f"{use.strength:g} × {name}"  # noqa: RUF001 -- the sign for times
                                for use, name in zip(uses, names, strict=True)), "strong", wrap=True)
        self.how = QComboBox()
        self.how.setAccessibleName("How it is mixed")
        for words, value in _WAYS:
            self.how.addItem(words, value)
        self.rank = QSpinBox()
        self.rank.setRange(1, 1024)
        self.rank.setValue(16)
        self.rank.setFixedWidth(96)
        self.rank.setAccessibleName("Rank of the mix")
        spin_margin(self.rank)
        self.folder = QLineEdit(str(files.free_path(adapters_root() / "mix")))
        self.folder.setMinimumWidth(_WIDTH - 110)
        self.folder.setAccessibleName("Folder of the mix")
        self.problem = ProblemLine()
        self.save_button = button("Save", self.accept, role="primary", icon="floppy-disk")
        self.save_button.setDefault(True)
        self._rank_part = QWidget()
        self._rank_part.setLayout(column(label("Rank"), row(self.rank, None), spacing=4))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(*[theme.PAGE_MARGIN] * 4)
        layout.setSpacing(2 * theme.GRID)
        layout.addWidget(parts)
        layout.addLayout(column(label("How"), self.how, spacing=4))
        layout.addWidget(self._rank_part)
        layout.addLayout(column(label("Folder"), row(self.folder, button("Choose…", self._browse, icon="folder-open")),
                                spacing=4))
        layout.addWidget(self.problem)
        layout.addLayout(row(None, button("Cancel", self.reject), self.save_button))
        self.how.currentIndexChanged.connect(self._changed)
        self.folder.textChanged.connect(self._changed)
        self._changed()

    def job(self) -> MixAdapters:
        """What was asked for."""
        how = cast("str", self.how.currentData())
        return MixAdapters(self._uses, Path(self.folder.text().strip()).expanduser(), how,  # type: ignore[arg-type]
                           self.rank.value() if how == "svd" else 0)

    @Slot()
    def _changed(self) -> None:
        self._rank_part.setVisible(self.how.currentData() == "svd")
        message, hint = folder_problem(self.folder.text(), 0)
        if not message and Path(self.folder.text().strip()).expanduser().exists():
            message, hint = "This folder exists already.", "Choose a new one."
        self.problem.set_problem(f"{message} {hint}".strip())
        self.save_button.setEnabled(not message)
        self.adjustSize()

    def _browse(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Where the mix is saved", str(adapters_root()))
        if chosen:
            self.folder.setText(str(files.free_path(Path(chosen) / "mix")))
