"""Figures with a caption, in space that is reserved so that nothing jumps while they change."""

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtGui import QFontMetrics
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from app import theme
from app.figures import NOT_KNOWN
from app.widgets import label, plain_tip


@dataclass(frozen=True)
class FigureSpec:
    """A figure: its name, its caption, the widest text it must hold, and a tool tip."""

    name: str
    caption: str
    widest: str
    tip: str = ""


class FigureRow(QWidget):
    """Captions above numbers, from left to right."""

    def __init__(self, specs: Sequence[FigureSpec]) -> None:
        super().__init__()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(theme.GRID)
        self._values = {}
        metrics = QFontMetrics(theme.font("section"))
        for spec in specs:
            value = label(NOT_KNOWN, "section")
            value.setMinimumWidth(metrics.horizontalAdvance(spec.widest) + 2)
            value.setToolTip(plain_tip(spec.tip))
            value.setAccessibleName(spec.caption)
            box = QVBoxLayout()
            box.setSpacing(2)
            box.addWidget(label(spec.caption, "help"))
            box.addWidget(value)
            layout.addLayout(box)
            layout.addStretch(1)
            self._values[spec.name] = value
        layout.takeAt(layout.count() - 1)

    def show_values(self, **texts: str) -> None:
        """Change some of the figures, by name."""
        for name, text in texts.items():
            if self._values[name].text() != text:
                self._values[name].setText(text)

    def text(self, name: str) -> str:
        """What a figure shows now."""
        return self._values[name].text()
