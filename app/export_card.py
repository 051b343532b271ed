"""A card of the export wizard: something that can be taken away."""

from PySide6.QtCore import Qt
from PySide6.QtGui import QMouseEvent
from PySide6.QtWidgets import QFrame, QRadioButton, QVBoxLayout

from app import theme
from app.widgets import label


class TargetCard(QFrame):
    """A card that is chosen as a whole."""

    def __init__(self, title: str, sentence: str) -> None:
        super().__init__()
        theme.set_role(self, "card")
        self.radio = QRadioButton(title)
        font = theme.font("section")
        self.radio.setFont(font)
        self._sentence = sentence
        self.cost = label("", "help", wrap=True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(*[theme.CARD_MARGIN] * 4)
        layout.addWidget(self.radio)
        layout.addWidget(label(sentence, wrap=True))
        layout.addStretch(1)
        layout.addWidget(self.cost)
        self.setMinimumSize(220, 150)
        self.set_reason("")

    def set_reason(self, reason: str) -> None:
        """Why this can not be chosen; "" where it can."""
        self.radio.setEnabled(not reason)
        self.radio.setAccessibleDescription(f"{self._sentence} {reason}".strip())
        self.setCursor(Qt.CursorShape.ArrowCursor if reason else Qt.CursorShape.PointingHandCursor)

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """Anywhere on the card counts."""
        if self.radio.isEnabled():
            self.radio.setChecked(True)
            self.radio.setFocus()
        super().mousePressEvent(event)
