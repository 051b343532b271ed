"""Plots that belong together: one range of steps, one cross-hair, one timer.

Series only grow in between; the timer redraws what changed, never more often than it can afford.
"""

import time

import numpy as np
from PySide6.QtCore import QObject, QTimer, Signal, Slot
from PySide6.QtWidgets import QWidget

from app.plots import StepPlot
from app.series import Floats

REDRAW_MILLISECONDS = 100


class PlotGroup(QObject):
    """Plots with one range of steps, one cross-hair and one timer that redraws what changed."""

    cursor_changed = Signal(object)  # step, None: no cross-hair
    redrawn = Signal()

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._window = parent
        self.plots: list[StepPlot] = []
        self.cursor: float | None = None
        self._chosen: tuple[float, float] | None = None  # steps the person zoomed to
        self._dirty = False
        self._timer = QTimer(self)
        self._timer.setInterval(REDRAW_MILLISECONDS)
        self._timer.timeout.connect(self._redraw_if_needed)
        self._timer.start()

    def add(self, plot: StepPlot) -> StepPlot:
        """Take a plot in."""
        self.plots.append(plot)
        plot.pointed.connect(self.point_at)
        plot.navigated.connect(self._navigate)
        plot.zoomed.connect(self._zoomed)
        plot.reset_requested.connect(self.reset)
        return plot

    def changed(self) -> None:
        """Points were added: redraw at the next tick."""
        self._dirty = True

    @Slot()
    def reset(self) -> None:
        """Show all steps and fit all values."""
        self._chosen = None
        for plot in self.plots:
            plot.fit_values()
        self.redraw()

    def show_steps(self, first: float, last: float) -> None:
        """Zoom all plots to these steps."""
        self._chosen = (first, last)
        for plot in self.plots:
            plot.set_x_range(self._chosen)

    @property
    def zoomed_in(self) -> bool:
        """True while the person looks at a part of the run."""
        return self._chosen is not None

    def redraw(self) -> None:
        """Draw all plots now."""
        begin = time.perf_counter()
        self._dirty = False
        x_range = self._chosen or self._all_steps()
        for plot in self.plots:
            plot.redraw(x_range)
        self.redrawn.emit()
        # a slow machine or a huge run: drawing takes at most a fifth of the window's time
        self._timer.setInterval(max(REDRAW_MILLISECONDS, int(5000 * (time.perf_counter() - begin))))

    @Slot()
    def _redraw_if_needed(self) -> None:
        if self._dirty and self._window.isVisible():
            self.redraw()

    def _all_steps(self) -> tuple[float, float]:
        ends = [(curve.series.steps[0], curve.series.steps[-1])
                for plot in self.plots for curve in plot.curves if len(curve.series)]
        if not ends:
            return 0.0, 1.0
        first, last = min(end[0] for end in ends), max(end[1] for end in ends)
        margin = 0.01 * (last - first) or 1.0
        return float(first - margin), float(last + margin)

    @Slot()
    def _zoomed(self) -> None:
        plot = self.sender()
        if isinstance(plot, StepPlot):
            self.show_steps(*plot.x_range())

    @Slot(object)
    def point_at(self, step: float | None) -> None:
        """Put the cross-hair of all plots on the measured step nearest to `step`."""
        steps = self._main_steps()
        if step is not None:
            step = float(steps[_nearest(steps, step)]) if len(steps) else None
        if step == self.cursor:
            return
        self.cursor = step
        for plot in self.plots:
            plot.set_cursor(step)
        self.cursor_changed.emit(step)

    @Slot(int)
    def _navigate(self, points: int) -> None:
        steps = self._main_steps()
        if not len(steps):
            return
        start = len(steps) - 1 if self.cursor is None else _nearest(steps, self.cursor) + points
        self.point_at(float(steps[min(max(start, 0), len(steps) - 1)]))

    def _main_steps(self) -> Floats:
        """The steps of the longest curve."""
        series = [curve.series for plot in self.plots for curve in plot.curves]
        return max((one.steps for one in series), key=len, default=np.empty(0))


def _nearest(steps: Floats, step: float) -> int:
    right = int(np.searchsorted(steps, step))
    if right == 0:
        return 0
    if right == len(steps) or step - steps[right - 1] <= steps[right] - step:
        return right - 1
    return right
