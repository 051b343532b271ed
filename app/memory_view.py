"""The memory that training needs, as a bar of its parts against what the machine has."""

from PySide6.QtCore import QRectF, QSize, Slot
from PySide6.QtGui import QColor, QPainter, QPainterPath, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QGridLayout, QLayout, QSizePolicy, QVBoxLayout, QWidget

from app import theme
from app.memory_probe import MemoryProbe
from app.widgets import button, label, plain_tip, row
from core import words
from core.estimate import Estimate
from core.memory import PARTS

_BAR_HEIGHT = 14
_SWATCH = 10
_COLUMNS = 4  # at most
_GAP = 2 * theme.GRID
_MEASURE = "Measure"
_TIP = "Loads the model, trains a step on the longest rows and measures its memory. Nothing is kept."


def part_color(part: str) -> QColor:
    """The colour of a part; the overhead, which is no tensor, is grey."""
    return QColor(theme.colors().dim_text if part == "overhead" else theme.CURVES[PARTS.index(part)])


class PartsBar(QWidget):
    """The parts side by side. Where they are more than there is, a line marks what there is."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._parts: dict[str, int] = {}
        self._total = 1
        self.setFixedHeight(_BAR_HEIGHT)
        self.setMinimumWidth(80)
        self.setAccessibleName(name)

    def show_parts(self, parts: dict[str, int], total: int) -> None:
        """Draw `parts` in bytes against `total`."""
        self._parts, self._total = parts, total
        share = sum(parts.values()) / total
        self.setAccessibleDescription(f"{share:.0%}: " + ", ".join(part_words(parts)))
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Wide enough to be read."""
        return QSize(160, _BAR_HEIGHT)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """The groove, the parts, and the mark."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        groove = QPainterPath()
        groove.addRoundedRect(QRectF(self.rect()), 4, 4)
        painter.fillPath(groove, QColor(theme.colors().hover))
        painter.setClipPath(groove)
        scale = self.width() / max(self._total, sum(self._parts.values()))
        left = 0.0
        for part, size in self._parts.items():
            painter.fillRect(QRectF(left, 0, size * scale, self.height()), part_color(part))
            left += size * scale
        if left > self._total * scale:
            painter.fillRect(QRectF(self._total * scale - 1, 0, 3, self.height()), QColor(theme.colors().danger))


class _Swatch(QWidget):
    """A small square in the colour of a part."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part
        self.setFixedSize(_SWATCH, _SWATCH)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """A rounded square."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        square = QPainterPath()
        square.addRoundedRect(QRectF(self.rect()), 2, 2)
        painter.fillPath(square, part_color(self._part))


class _Legend(QWidget):
    """What the colours mean, and how much each part is, in as many columns as fit; parts of nothing are left out."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setSizeConstraint(QLayout.SizeConstraint.SetNoConstraint)  # fewer columns instead
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(_GAP)
        self._grid.setVerticalSpacing(4)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self._shown: list[str] = []
        self._columns = 0
        self._amounts = {part: label("", "help") for part in PARTS}
        self._items = {part: QWidget(self) for part in PARTS}
        for part, item in self._items.items():
            item.setLayout(row(_Swatch(part), self._amounts[part], None, spacing=6))
            item.hide()

    def show_parts(self, parts: dict[str, int]) -> None:
        """Write the amounts."""
        for part in PARTS:
            self._amounts[part].setText(part_words({part: parts.get(part, 0)})[0])
        shown = [part for part in PARTS if parts.get(part)]
        self._place(shown, self._fitting(shown))

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Another width may have room for more columns, or fewer."""
        super().resizeEvent(event)
        self._place(self._shown, self._fitting(self._shown))

    def _fitting(self, parts: list[str]) -> int:
        widest = max((self._items[part].sizeHint().width() for part in parts), default=1)
        return max(1, min(_COLUMNS, (self.width() + _GAP) // (widest + _GAP)))

    def _place(self, shown: list[str], columns: int) -> None:
        if (shown, columns) == (self._shown, self._columns):
            return
        self._shown, self._columns = shown, columns
        for part, item in self._items.items():
            self._grid.removeWidget(item)
            item.setVisible(part in shown)
        for number, part in enumerate(shown):
            self._grid.addWidget(self._items[part], number // columns, number % columns)
        for column in range(_COLUMNS):
            self._grid.setColumnStretch(column, int(column < columns))
        self.updateGeometry()


class MemoryView(QWidget):
    """One sentence, the bar, its legend, and a button that measures."""

    def __init__(self, probe: MemoryProbe) -> None:
        super().__init__()
        self._probe = probe
        self._low = False
        self.text = label("", "body", wrap=True)
        self.text.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.bar = PartsBar("Memory that training needs")
        self.legend = _Legend()
        self.measure_button = button(_MEASURE, self._pressed, icon="gauge", tip=_TIP)
        self.failure = label("", "error", wrap=True)
        line = row(self.text, self.measure_button)
        line.setStretch(0, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(theme.GRID)
        layout.addLayout(line)
        layout.addWidget(self.bar)
        layout.addWidget(self.legend)
        layout.addWidget(self.failure)
        probe.changed.connect(self.refresh)
        self.refresh()

    def set_low(self, low: bool) -> None:
        """Whether the page has little height: what the colours mean then stands in the bar's tool tip alone."""
        if low != self._low:
            self._low = low
            self.refresh()

    @Slot()
    def refresh(self) -> None:
        """Show the estimate as it is now."""
        probe, found = self._probe, self._probe.estimate()
        self.bar.setVisible(found is not None)
        self.legend.setVisible(found is not None and not self._low)
        self.text.setText(self._sentence(found))
        self.measure_button.setText("Cancel" if probe.busy else _MEASURE)
        self.measure_button.setAccessibleName(self.measure_button.text())
        self.measure_button.setVisible(found is not None)
        self.measure_button.setEnabled(probe.busy or probe.ready)
        self.failure.setText(probe.failure)
        self.failure.setVisible(bool(probe.failure))
        if found is not None:
            self.bar.show_parts(found.memory, probe.memory_bytes)
            self.legend.show_parts(found.memory)
            self.bar.setToolTip(plain_tip("\n".join((*part_words(found.memory), *found.assumptions))))

    def _sentence(self, found: Estimate | None) -> str:
        probe = self._probe
        if found is None:
            return "Not known yet."
        if probe.busy:
            return probe.stage
        total = probe.memory_bytes
        fits = "" if found.memory_bytes <= total else " That is more than there is."
        amount = f"{words.memory(found.memory_bytes)} of {words.memory(total)}"
        if probe.is_measured:
            return f"Training needs {amount}, as measured.{fits}"
        corrected = ", corrected by a measurement" if probe.is_corrected else ""
        return f"Training needs about {amount}{corrected}.{fits}"

    def _pressed(self) -> None:
        if self._probe.busy:
            self._probe.cancel()
        else:
            self._probe.measure()


def part_words(parts: dict[str, int]) -> list[str]:
    """`Weights 538 MB` of each part."""
    return [f"{part.capitalize()} {words.memory(size)}" for part, size in parts.items()]
