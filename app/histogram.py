"""The lengths of a dataset's rows, with the line of the maximum length."""

import math

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QToolTip, QWidget

from app import theme
from app.widgets import plain_tip
from core.events import DataScanned
from core.words import plural

_AXIS = 18.0


class LengthHistogram(QWidget):
    """Bars over equal bins from 0 to the longest row; what lies beyond the limit is amber."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: tuple[int, ...] = ()
        self._longest = 0
        self._limit = 0
        self.setMinimumHeight(64)
        self.setMouseTracking(True)
        self.setAccessibleName("Lengths of the rows")

    def show_scan(self, scan: DataScanned | None, limit: int) -> None:
        """Show a dataset's lengths; `limit` is the maximum length in tokens."""
        self._counts = scan.length_counts if scan else ()
        self._longest = scan.longest if scan else 0
        self._limit = limit
        if scan:
            self.setAccessibleDescription(
                f"The longest row has {plural(scan.longest, 'token')}, the limit is {limit:,}.")
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Wide and flat."""
        return QSize(320, 64)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Bars, axis and limit."""
        if not self._counts or not self._longest:
            return
        colors = theme.colors()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        ground = self.height() - _AXIS
        tallest = max(self._counts)
        for number, count in enumerate(self._counts):
            if not count:
                continue
            left, right = self._edges(number)
            height = max(2.0, (ground - 4) * count / tallest)
            beyond = (number + 0.5) * self._longest / len(self._counts) > self._limit
            painter.fillRect(QRectF(left, ground - height, max(right - left - 1, 1.0), height),
                             QColor(colors.warning if beyond else colors.accent))
        painter.setPen(QColor(colors.border))
        painter.drawLine(QPointF(0, ground), QPointF(self.width(), ground))
        self._paint_words(painter, ground)

    def _paint_words(self, painter: QPainter, ground: float) -> None:
        colors = theme.colors()
        font = theme.font("help")
        painter.setFont(font)
        painter.setPen(QColor(colors.dim_text))
        strip = QRectF(0, ground + 2, self.width(), _AXIS - 2)
        painter.drawText(strip, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, "0")
        end = f"longest {self._longest:,} tokens"
        painter.drawText(strip, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, end)
        if self._limit > self._scale():
            painter.drawText(QRectF(0, 0, self.width(), _AXIS), Qt.AlignmentFlag.AlignRight, f"limit {self._limit:,} ›")  # noqa: RUF001
            return
        x = self._limit / self._scale() * self.width()
        painter.setPen(QPen(QColor(colors.danger_text), 1, Qt.PenStyle.DashLine))
        painter.drawLine(QPointF(x, 0), QPointF(x, ground))
        words = f"limit {self._limit:,}"
        width = QFontMetricsF(font).horizontalAdvance(words) + 4
        left = x - width - 4 if x + width + 8 > self.width() else x + 4
        painter.setPen(QColor(colors.danger_text))
        painter.drawText(QRectF(left, 0, width, _AXIS), Qt.AlignmentFlag.AlignLeft, words)

    def _scale(self) -> float:
        """Tokens at the right end; a limit a little above the longest row stays in sight."""
        return max(self._longest, self._limit) if self._limit <= 2 * self._longest else self._longest

    def _edges(self, number: int) -> tuple[float, float]:
        width = self.width() * self._longest / self._scale() / len(self._counts)
        return number * width, (number + 1) * width

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """Tell the bin under the pointer."""
        if not self._counts or not self._longest:
            return
        bins = len(self._counts)
        number = int(event.position().x() / self.width() * self._scale() / self._longest * bins)
        if 0 <= number < bins:
            low, high = (math.floor(edge * self._longest / bins) for edge in (number, number + 1))
            QToolTip.showText(event.globalPosition().toPoint(),
                              plain_tip(f"{plural(self._counts[number], 'row')} of {low:,} to {high:,} tokens"), self)
