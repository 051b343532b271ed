"""Small windows that only say something."""

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QVBoxLayout, QWidget

from app import theme
from app.widgets import button, label, row


def about_window(version: str, parent: QWidget) -> QDialog:
    """Opens the window that says what this program is."""
    dialog = QDialog(parent)
    dialog.setWindowTitle("About LoRA Workbench")
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    layout = QVBoxLayout(dialog)
    layout.setContentsMargins(*[theme.PAGE_MARGIN] * 4)
    layout.setSpacing(theme.GRID)
    layout.addWidget(label("LoRA Workbench", "title"))
    layout.addWidget(label(f"Version {version} · Apache License 2.0", "help"))
    words = label("Fine-tunes language models with LoRA on your own machine. "
                  "Nothing is sent anywhere; a model is fetched from the hub only when you ask for it.", wrap=True)
    words.setFixedWidth(360)
    layout.addWidget(words)
    close = button("Close", dialog.accept)
    close.setDefault(True)
    layout.addLayout(row(None, close))
    dialog.open()
    return dialog
