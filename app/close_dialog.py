"""What becomes of the run when the window is closed."""

from typing import Literal

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QMessageBox, QWidget

Answer = Literal["keep", "stop", "cancel"]


def ask_how_to_close(parent: QWidget) -> Answer:
    """Ask: keep training in the background, save and stop, or do not close."""
    box = QMessageBox(parent)
    box.setWindowTitle("Training goes on")
    box.setTextFormat(Qt.TextFormat.PlainText)
    box.setText("A run is being trained. What should become of it?")
    box.setInformativeText("In the background it goes on without the window; open the window again to follow it.")
    keep = box.addButton("Keep training in the background", QMessageBox.ButtonRole.AcceptRole)
    stop = box.addButton("Checkpoint and stop", QMessageBox.ButtonRole.DestructiveRole)
    cancel = box.addButton("Cancel", QMessageBox.ButtonRole.RejectRole)
    box.setDefaultButton(keep)
    box.setEscapeButton(cancel)
    box.exec()
    if box.clickedButton() is keep:
        return "keep"
    return "stop" if box.clickedButton() is stop else "cancel"
