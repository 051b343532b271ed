"""A live plot over the steps of a run; `app.plot_group` links several and redraws them.

Axis ranges are computed here and never by pyqtgraph's auto-range, which would scan every point
of every curve.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QPointF, Qt, Signal, Slot
from PySide6.QtGui import QColor, QKeyEvent, QPen
from PySide6.QtWidgets import QWidget

from app import theme
from app.series import Floats, Series

LEFT_AXIS_WIDTH = 56  # pixels, the same for all plots: steps lie under each other
_GAPS_UP_TO = 5000  # points; with more, one NaN would blank a whole pixel column, so they are passed over
_MOST_BAD_MARKS = 500
_NAVIGATION = {Qt.Key.Key_Left: -1, Qt.Key.Key_Right: 1, Qt.Key.Key_Home: -10**9, Qt.Key.Key_End: 10**9}
_DASHES = (Qt.PenStyle.SolidLine, Qt.PenStyle.DashLine, Qt.PenStyle.DotLine, Qt.PenStyle.DashDotLine)


@dataclass
class Curve:
    """One series in a plot: how it is named, coloured and drawn."""

    name: str
    series: Series
    color: int = 0  # index of `curve_color`
    smoothed: bool = False  # faint raw line under the moving average
    points: bool = False  # markers on the line, for measurements that are far apart


def curve_color(index: int) -> QColor:
    """Okabe and Ito's colours, in the order that stands out on the present background."""
    blue, orange, green, purple, sky, vermilion, yellow = theme.CURVES
    light = (blue, vermilion, green, purple, orange, sky)
    dark = (sky, orange, green, purple, vermilion, yellow)
    order = dark if theme.colors().dark else light
    return QColor(order[index % len(order)])


def curve_pen(index: int, opacity: float = 1.0) -> QPen:
    """A pen of 1 px; curves beyond the colours differ by their dashes."""
    color = curve_color(index)
    color.setAlphaF(opacity)
    pen = QPen(color, 1)
    pen.setCosmetic(True)
    pen.setStyle(_DASHES[index // 6 % len(_DASHES)])
    return pen


class _View(pg.ViewBox):
    """Wheel zooms the steps (with Ctrl: the values), drag pans, Shift+drag zooms, double click resets.

    Values are fitted to what is seen until the person zooms them (`free_values`).
    """

    reset_requested = Signal()

    def __init__(self) -> None:
        super().__init__(enableMenu=False)
        self.disableAutoRange()
        self.free_values = False

    def wheelEvent(self, ev: Any, axis: int | None = None) -> None:  # noqa: N802 -- Qt's name
        if axis is None:
            axis = 1 if ev.modifiers() & Qt.KeyboardModifier.ControlModifier else 0
        self.free_values = self.free_values or axis == 1
        super().wheelEvent(ev, axis)

    def mouseDragEvent(self, ev: Any, axis: int | None = None) -> None:  # noqa: N802
        if ev.button() == Qt.MouseButton.RightButton:
            ev.ignore()
            return
        rectangle = bool(ev.modifiers() & Qt.KeyboardModifier.ShiftModifier) and axis is None
        self.setMouseMode(self.RectMode if rectangle else self.PanMode)
        if axis == 1 or (rectangle and ev.isFinish()):
            self.free_values = True
        elif not rectangle and not self.free_values:
            axis = 0
        super().mouseDragEvent(ev, axis)

    def mouseClickEvent(self, ev: Any) -> None:  # noqa: N802
        if ev.double():
            ev.accept()
            self.reset_requested.emit()


class StepPlot(pg.PlotWidget):
    """One plot of one or more curves over the steps. Draws when told; see `app.plot_group`."""

    pointed = Signal(object)  # step under the mouse, None when it left
    navigated = Signal(int)  # points to go by the arrow keys
    zoomed = Signal()  # by the person
    reset_requested = Signal()

    def __init__(self, name: str, *, small: bool = False, show_steps: bool = True, levels: bool = True,
                 parent: QWidget | None = None) -> None:
        self._small = small  # few ticks, values from zero
        self._levels = levels  # the cross-hair lies on the first curve, where that is the one looked at
        self._view = _View()
        super().__init__(parent, viewBox=self._view, enableMenu=False)
        self.curves: list[Curve] = []
        self._items: list[tuple[Curve, pg.PlotDataItem, pg.PlotDataItem | None, pg.ScatterPlotItem]] = []
        self._log = False
        self.setAccessibleName(name)
        self.setMinimumSize(100, 36 if small else 120)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self._build_axes(show_steps)
        self._cursor: float | None = None  # step
        self._line, self._level = (pg.InfiniteLine(angle=angle, movable=False) for angle in (90, 0))
        for line in (self._line, self._level):
            line.hide()
            self._plot.addItem(line, ignoreBounds=True)
        self._view.reset_requested.connect(self.reset_requested)
        self._view.sigRangeChangedManually.connect(self._moved_by_hand)
        self._plot.scene().sigMouseMoved.connect(self._mouse_moved)
        self.apply_theme()

    @property
    def _plot(self) -> pg.PlotItem:
        item = self.getPlotItem()
        assert item is not None
        return item

    def _build_axes(self, show_steps: bool) -> None:
        plot = self._plot
        plot.hideButtons()
        plot.setDownsampling(auto=True, mode="peak")
        plot.setClipToView(True)
        plot.showGrid(x=True, y=True, alpha=0.12)
        font = theme.font("help")
        font.setPixelSize(11)
        for side in ("left", "bottom"):
            axis = plot.getAxis(side)
            axis.enableAutoSIPrefix(False)
            axis.setStyle(tickFont=font, tickLength=0, hideOverlappingLabels=True, maxTickLevel=1)
        plot.getAxis("left").setWidth(LEFT_AXIS_WIDTH)
        plot.getAxis("bottom").setStyle(showValues=show_steps)
        plot.getAxis("bottom").setHeight(20 if show_steps else 4)
        plot.setContentsMargins(0, 6, 10, 0)

    def set_curves(self, curves: Sequence[Curve]) -> None:
        """Show these curves and no others. The caller redraws.

        Items are kept where they serve: another run has as many curves, and Qt's and Python's ideas of when an item
        is gone differ.
        """
        self.curves = list(curves)
        kept = self._items[:len(curves)]
        while kept and any((item[2] is None) == curve.smoothed for item, curve in zip(kept, curves, strict=False)):
            kept.pop()
        for _, *items in self._items[len(kept):]:
            for item in items:
                if item is not None:
                    self._plot.removeItem(item)
        self._items = [(curve, *item[1:]) for item, curve in zip(kept, curves, strict=False)]
        for curve in curves[len(kept):]:
            raw = pg.PlotDataItem(antialias=True)  # cheap: never more than a few points for each pixel
            smooth = pg.PlotDataItem(antialias=True) if curve.smoothed else None
            bad = pg.ScatterPlotItem(symbol="x", size=8, pen=None)
            for item in (raw, smooth, bad):
                if item is not None:
                    self._plot.addItem(item)
            self._items.append((curve, raw, smooth, bad))
        self._style_items()

    def set_log(self, log: bool) -> None:
        """Logarithmic values. The caller redraws."""
        self._log = log
        self._view.free_values = False
        self._plot.setLogMode(x=False, y=log)

    def redraw(self, x_range: tuple[float, float]) -> None:
        """Give every curve its points and fit the values that are seen, unless the person chose a range."""
        for curve, raw, smooth, bad in self._items:
            raw.setData(*_drawable(curve.series, curve.series.values))
            if smooth is not None:
                smooth.setData(*_drawable(curve.series, curve.series.smoothed))
            bad.setData(*self._bad_marks(curve.series))
        self.set_cursor(self._cursor)  # smoothing and scale move the value
        self.set_x_range(x_range)

    def set_x_range(self, x_range: tuple[float, float]) -> None:
        """Show these steps."""
        self._view.setXRange(*x_range, padding=0)
        if not self._view.free_values:
            low, high = value_range(self.curves, x_range, self._log)
            if self._small and not self._log:
                low, high = min(low, 0.0), max(high, 0.0)
                top = round_below(0.9 * high)  # a label at the very top would be cut off
                self._plot.getAxis("left").setTicks([[(0.0, "0"), (top, f"{top:g}")]])
            self._view.setYRange(low, high, padding=0.06)

    def fit_values(self) -> None:
        """Forget a range of values that the person chose."""
        self._view.free_values = False

    def x_range(self) -> tuple[float, float]:
        """The steps that are seen."""
        (left, right), _ = self._view.viewRange()
        return float(left), float(right)

    def set_cursor(self, step: float | None) -> None:
        """Put the cross-hair on a step and on the value of the first curve there, or take it away."""
        self._cursor = step
        self._line.setVisible(step is not None)
        level = math.nan
        if step is not None and self._levels and self.curves:
            level = self.curves[0].series.smoothed_at(step)
        seen = math.isfinite(level) and (level > 0 or not self._log)
        self._level.setVisible(seen)
        if step is not None:
            self._line.setPos(step)
        if seen:
            self._level.setPos(math.log10(level) if self._log else level)

    def apply_theme(self) -> None:
        """Take the present scheme's colours."""
        colors = theme.colors()
        self.setBackground(colors.surface)
        for side in ("left", "bottom"):
            axis = self._plot.getAxis(side)
            axis.setPen(QColor(colors.border))
            axis.setTextPen(QColor(colors.dim_text))
        pen = QPen(QColor(colors.dim_text), 1, Qt.PenStyle.DashLine)
        pen.setCosmetic(True)
        for line in (self._line, self._level):
            line.setPen(pen)
        self._style_items()

    def _style_items(self) -> None:
        for curve, raw, smooth, bad in self._items:
            raw.setPen(curve_pen(curve.color, theme.RAW_CURVE_OPACITY if smooth is not None else 1.0))
            if smooth is not None:
                smooth.setPen(curve_pen(curve.color))
            raw.setSymbol("o" if curve.points else None)  # type: ignore[arg-type] -- None takes it away
            if curve.points:
                raw.setSymbolSize(6)
                raw.setSymbolBrush(curve_color(curve.color))
                raw.setSymbolPen(None)
            bad.setBrush(QColor(theme.colors().danger))

    def _bad_marks(self, series: Series) -> tuple[Floats, Floats]:
        """A cross on the moving average where the value was not finite."""
        if not series.non_finite:
            return np.empty(0), np.empty(0)
        heights = series.smoothed
        places = np.flatnonzero(~np.isfinite(series.values) & np.isfinite(heights))[-_MOST_BAD_MARKS:]
        y = heights[places]
        if self._log:
            places, y = places[y > 0], np.log10(y[y > 0])
        return series.steps[places], y

    @Slot(object)
    def _moved_by_hand(self, _mask: object) -> None:
        self.zoomed.emit()

    @Slot(object)
    def _mouse_moved(self, position: QPointF) -> None:
        if self._view.sceneBoundingRect().contains(position):
            self.pointed.emit(float(self._view.mapSceneToView(position).x()))
        else:
            self.pointed.emit(None)

    def leaveEvent(self, ev: QEvent) -> None:  # noqa: N802
        """The mouse left: no cross-hair."""
        super().leaveEvent(ev)
        self.pointed.emit(None)

    def keyPressEvent(self, ev: QKeyEvent) -> None:  # noqa: N802
        """Arrow keys move the cross-hair, Escape takes it away."""
        if ev.key() in _NAVIGATION:
            self.navigated.emit(_NAVIGATION[Qt.Key(ev.key())])
        elif ev.key() == Qt.Key.Key_Escape:
            self.pointed.emit(None)
        else:
            super().keyPressEvent(ev)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        """Follow the scheme."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and hasattr(self, "_line"):
            self.apply_theme()


def round_below(value: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `value`; 0 where that is not positive."""
    if not value > 0 or not math.isfinite(value):
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(f"{max(factor for factor in (1, 2, 5) if factor * power <= value * (1 + 1e-9)) * power:.1g}")


def _drawable(series: Series, values: Floats) -> tuple[Floats, Floats]:
    """Points as pyqtgraph wants them: infinity is a gap too, and long series pass over gaps."""
    if not series.non_finite:
        return series.steps, values
    finite = np.isfinite(values)
    if len(values) > _GAPS_UP_TO:
        return series.steps[finite], values[finite]
    return series.steps, np.where(finite, values, np.nan)


def value_range(curves: Sequence[Curve], x_range: tuple[float, float], log: bool) -> tuple[float, float]:
    """Smallest and largest finite value within the steps; as log10 where `log`. (0, 1) where nothing is seen."""
    low, high = math.inf, -math.inf
    for curve in curves:
        first, last = np.searchsorted(curve.series.steps, x_range)
        values = curve.series.values[max(0, first - 1):last + 1]
        if curve.series.non_finite or log:
            values = values[np.isfinite(values) & ((values > 0) if log else True)]
        if len(values):
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low > high:
        return 0.0, 1.0
    if log:
        low, high = math.log10(low), math.log10(high)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-12):
        spread = 0.5 if log else abs(high) * 0.1 or 1.0
        return low - spread, high + spread
    return low, high
