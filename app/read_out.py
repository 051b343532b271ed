"""The line above a plot that names every curve and reads its value at the cross-hair."""

from collections.abc import Sequence
from typing import Literal

from PySide6.QtCore import QPointF, QSize, Qt
from PySide6.QtGui import QFont, QFontMetrics, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QHBoxLayout, QLabel, QSizePolicy, QWidget

from app import theme
from app.figures import NOT_KNOWN
from app.plots import curve_color, curve_pen
from app.widgets import ElidedLabel, label, plain_tip

Swatch = Literal["raw", "line", "points"]
_LONGEST_NAME = 22  # characters


class SwatchMark(QWidget):
    """A short piece of a curve: its colour and its shape."""

    def __init__(self, kind: Swatch, color: int) -> None:
        super().__init__()
        self._kind = kind
        self._color = color
        self.setFixedSize(14, 16)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802 -- Qt's name
        """Draw the piece in the present scheme's colours."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        pen = QPen(curve_pen(self._color, theme.RAW_CURVE_OPACITY if self._kind == "raw" else 1.0))
        pen.setWidthF(2.0)
        painter.setPen(pen)
        middle = self.height() / 2
        painter.drawLine(QPointF(1, middle), QPointF(self.width() - 1, middle))
        if self._kind == "points":
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(curve_color(self._color))
            painter.drawEllipse(QPointF(self.width() / 2, middle), 3.5, 3.5)


class ReadOut(QWidget):
    """Cells of fixed width, so that nothing jumps while the numbers change."""

    def __init__(self, widest: str = "00.000", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._layout = QHBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(theme.GRID)
        self._widest = widest
        self._step = label("", "help")
        self._step.setFont(theme.font("help"))
        self._step.setFixedWidth(self._text_width("Step 00,000", strong=False))
        self._values: list[QLabel] = []
        self._texts: list[str] = []
        self._layout.addWidget(self._step)
        self._layout.addStretch(1)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setFixedHeight(20)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """A narrow window cuts the line off instead of being pushed wide."""
        return QSize(0, 20)

    def set_cells(self, cells: Sequence[tuple[Swatch, int, str]]) -> None:
        """One cell for each curve: the swatch's kind, the colour's index, the name."""
        while self._layout.count() > 2:
            item = self._layout.takeAt(1)
            widget = item.widget() if item else None
            if widget is not None:
                widget.hide()
                widget.deleteLater()
        self._values = []
        for place, (kind, color, name) in enumerate(cells, 1):
            self._layout.insertWidget(place, self._cell(kind, color, name))

    def _cell(self, kind: Swatch, color: int, name: str) -> QWidget:
        cell = QWidget()
        inside = QHBoxLayout(cell)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.setSpacing(4)
        short = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME - 1] + "…"
        caption = ElidedLabel(short, "help")
        caption.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        if short != name:
            cell.setToolTip(plain_tip(name))
        value = label(NOT_KNOWN, "strong")
        value.setFixedWidth(self._text_width(self._widest, strong=True))
        for part in (SwatchMark(kind, color), caption, value):
            inside.addWidget(part)
        self._values.append(value)
        return cell

    def show_values(self, step: float | None, values: Sequence[str]) -> None:
        """Write the step ("Newest" where there is no cross-hair) and one text for each cell."""
        self._texts = list(values)
        self._step.setText("Newest" if step is None else f"Step {step:,.0f}")
        for place, text in zip(self._values, values, strict=True):
            place.setText(text)

    def texts(self) -> list[str]:
        """What the cells show now."""
        return list(self._texts)

    def _text_width(self, text: str, *, strong: bool) -> int:
        font = theme.font("body" if strong else "help")
        font.setWeight(QFont.Weight.DemiBold if strong else QFont.Weight.Normal)
        return QFontMetrics(font).horizontalAdvance(text) + 2
