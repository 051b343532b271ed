"""Asks for a model of the hub. Nothing is fetched before the person says so here."""

import re

from PySide6.QtWidgets import QDialog, QLineEdit, QVBoxLayout, QWidget

from app import theme
from app.widgets import ProblemLine, button, column, label, row
from core.jobs import DownloadModel

_WIDTH = 440
_REPO_ID = re.compile(r"[\w.\-]{1,96}(/[\w.\-]{1,96})?")


class HubDialog(QDialog):
    """After `accept`, `job()` is the request."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Get a model from the hub")
        self.repo = QLineEdit()
        self.repo.setPlaceholderText("owner/name")
        self.repo.setAccessibleName("Model id")
        self.revision = QLineEdit("main")
        self.revision.setAccessibleName("Revision")
        self.problem = ProblemLine()
        explanation = label(
            "The model is fetched from huggingface.co into the model library on this machine. Only weights in the "
            "safetensors format, the tokenizer and the description files are taken, never a program. Nothing of "
            "yours is sent. Large models take many gigabytes; the license of the model holds.", "help", wrap=True)
        explanation.setFixedWidth(_WIDTH)
        self.get_button = button("Get it", self._accept, role="primary", icon="download-simple")
        self.get_button.setDefault(True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(*[theme.PAGE_MARGIN] * 4)
        layout.setSpacing(2 * theme.GRID)
        for caption, field in (("Model id", self.repo), ("Revision", self.revision)):
            layout.addLayout(column(label(caption), field, spacing=4))
        layout.addWidget(self.problem)
        layout.addWidget(explanation)
        layout.addLayout(row(None, button("Cancel", self.reject), self.get_button))

    def job(self) -> DownloadModel:
        """What was asked for."""
        return DownloadModel(self.repo.text().strip(), self.revision.text().strip() or "main")

    def _accept(self) -> None:
        name = self.repo.text().strip().removeprefix("https://huggingface.co/").strip("/")
        self.repo.setText(name)
        if _REPO_ID.fullmatch(name):
            self.accept()
        else:
            self.problem.set_problem("A model id looks like owner/name.")
            self.adjustSize()
            self.repo.setFocus()
