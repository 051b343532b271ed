"""The window that says what this program is."""

from PySide6.QtWidgets import QDialog, QVBoxLayout, QWidget

from app import theme
from app.widgets import button, label, row


class AboutDialog(QDialog):
    """What this program is."""

    def __init__(self, version: str, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("About LoRA Workbench")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(*[theme.PAGE_MARGIN] * 4)
        layout.setSpacing(theme.GRID)
        layout.addWidget(label("LoRA Workbench", "title"))
        layout.addWidget(label(f"Version {version} · Apache License 2.0", "help"))
        words = label("Fine-tunes language models with LoRA on your own machine. "
                      "Nothing is sent anywhere; a model is fetched from the hub only when you ask for it.", wrap=True)
        words.setFixedWidth(360)
        layout.addWidget(words)
        close = button("Close", self.accept)
        close.setDefault(True)
        layout.addLayout(row(None, close))
