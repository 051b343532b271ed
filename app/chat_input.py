"""The field where a question is written."""

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QKeyEvent, QResizeEvent
from PySide6.QtWidgets import QPlainTextEdit

_MOST_LINES = 5


class ChatInput(QPlainTextEdit):
    """Enter sends, Shift+Enter begins a new line; grows to five lines."""

    submitted = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.set_addressee("the model")
        self.setAccessibleName("Question")
        self.setTabChangesFocus(True)
        self.textChanged.connect(self._fit)
        self._fit()

    def set_addressee(self, who: str) -> None:
        """Say who will be asked."""
        self.setPlaceholderText(f"Ask {who}. Enter sends, Shift+Enter begins a new line.")

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802 -- Qt's name
        """Send on Enter."""
        enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        if enter and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self.submitted.emit()
            return
        super().keyPressEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Lines wrap anew."""
        super().resizeEvent(event)
        self._fit()

    @Slot()
    def _fit(self) -> None:
        lines = min(max(1, round(self.document().size().height())), _MOST_LINES)
        self.setFixedHeight(lines * self.fontMetrics().lineSpacing() + 22)
