"""The ranks of every matrix over the steps, as a heat map: a row is a matrix, its colour the rank."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from PySide6.QtCore import QObject, QPointF, QRectF, Qt, Signal, Slot
from PySide6.QtGui import QColor, QFontMetrics, QKeyEvent, QLinearGradient, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QLabel, QSizePolicy, QToolTip, QVBoxLayout, QWidget

from app import theme
from app.plot_group import PlotGroup
from app.plot_saving import PlotSaver, SaveButton, small_button
from app.plots import StepPlot
from app.rank_history import RankHistory
from app.series import Series
from app.widgets import ElidedLabel, label, plain_tip, row
from core import files
from core.words import plural

KIND_AXIS_WIDTH = 96  # pixels; longer names of kinds are cut
_LABEL_HEIGHT = 13  # pixels that the name of a block needs
_ROW_KEYS = {Qt.Key.Key_Up: -1, Qt.Key.Key_Down: 1}


def rank_colors(highest: int) -> NDArray[np.uint8]:
    """Shape (highest + 1, 4): a colour for every rank from 0, from the page's grey to the accent at its strongest."""
    colors = theme.colors()
    low, middle = QColor(colors.hover), QColor(colors.accent)
    high = middle.lighter(120) if colors.dark else middle.darker(250)
    stops = np.array([color.getRgb() for color in (low, middle, high)], dtype=float)
    places = np.linspace(0.0, 2.0, highest + 1) if highest else np.zeros(1)
    return np.stack([np.interp(places, (0.0, 1.0, 2.0), stops[:, channel]) for channel in range(4)],
                    axis=1).round().astype(np.uint8)


class RankPlot(StepPlot):
    """The heat map itself; zooms and points together with the other plots of its group.

    Signals: `row_chosen(int)`: the matrix under the mouse or reached by the arrow keys, -1: none.
    """

    row_chosen = Signal(int)

    def __init__(self) -> None:
        self._history = RankHistory()
        self._drawn: tuple[int, float, bool] = (-1, 0.0, False)
        self._chosen_row = -1
        self._loss = Series()
        self.image = pg.ImageItem(axisOrder="row-major")
        self._row_line = pg.InfiniteLine(angle=0, movable=False)
        self._seams: list[pg.InfiniteLine] = []
        super().__init__("Rank of every matrix over the steps")
        self._plot.showGrid(x=False, y=False)
        self._plot.getAxis("left").setWidth(KIND_AXIS_WIDTH)
        self._plot.addItem(self.image)
        self._plot.addItem(self._row_line, ignoreBounds=True)
        self._row_line.hide()
        self._view.invertY(True)
        self.image.setZValue(-10)

    @property
    def history(self) -> RankHistory:
        """What is drawn."""
        return self._history

    def last_step(self) -> float:
        """How far the run is; the newest choice counts up to there."""
        return float(max([0, *self._loss.steps[-1:], *self._history.steps[-1:]]))

    def show_history(self, history: RankHistory, loss: Series) -> None:
        """Draw another run; `loss` tells how far it is. The caller redraws."""
        self._history, self._loss = history, loss
        self._drawn = (-1, 0.0, False)
        self._view.free_values = False
        self._choose_row(-1)
        for seam in self._seams:
            self._plot.removeItem(seam)
        self._seams = []

    def redraw(self, x_range: tuple[float, float]) -> None:
        """Paint the ranks up to the newest step."""
        history, dark, last = self._history, theme.colors().dark, self.last_step()
        if self._drawn != (len(history), last, dark):
            self._drawn = (len(history), last, dark)
            picture = history.picture(last)
            self.image.setVisible(picture.size > 0)
            if picture.size:
                self.image.setImage(rank_colors(history.highest)[picture], autoLevels=False)
                first = history.steps[0]
                self.image.setRect(QRectF(first, 0, max(last - first, 1), len(history.modules)))
            self._draw_seams()
        self.set_x_range(x_range)

    def _draw_seams(self) -> None:
        """Thin lines between the kinds."""
        if not self._seams:
            for block in self._history.blocks[1:]:
                seam = pg.InfiniteLine(block.first, angle=0, movable=False)
                self._plot.addItem(seam, ignoreBounds=True)
                self._seams.append(seam)
        self._style_lines()

    def set_x_range(self, x_range: tuple[float, float]) -> None:
        """Show these steps, and all rows unless the person zoomed them."""
        self._view.setXRange(*x_range, padding=0)
        if not self._view.free_values:
            self._view.setYRange(0, max(len(self._history.modules), 1), padding=0)
        self._name_blocks()

    def _name_blocks(self) -> None:
        """The name of each kind in the middle of its rows; where they are too thin, of every second or third."""
        blocks = self._history.blocks
        height = max(self._view.height(), 1) / max(len(self._history.modules), 1)
        thinnest = min((block.rows * height for block in blocks), default=_LABEL_HEIGHT)
        every = max(1, int(np.ceil(_LABEL_HEIGHT / max(thinnest, 0.1))))
        self._plot.getAxis("left").setTicks([[(block.first + block.rows / 2, _short(block.kind))
                                              for block in blocks[::every]]])

    def row_at(self, height: float) -> int:
        """The matrix at a height of the plot; -1 where there is none."""
        place = int(np.floor(height))
        return place if 0 <= place < len(self._history.modules) else -1

    def words_at(self, place: int, step: float) -> str:
        """`model.layers.3.self_attn.q_proj: rank 5 of 12 at step 120`; empty where nothing is known."""
        ranks = self._history.ranks_at(step)
        if not 0 <= place < len(ranks):
            return ""
        return (f"{self._history.modules[place]}: rank {int(ranks[place]):,} of {self._history.highest:,} "
                f"at step {step:,.0f}")

    @Slot(object)
    def _mouse_moved(self, position: QPointF) -> None:
        super()._mouse_moved(position)
        if not self._view.sceneBoundingRect().contains(position):
            self._choose_row(-1)
            return
        place = self._view.mapSceneToView(position)
        self._choose_row(self.row_at(place.y()))
        words = self.words_at(self._chosen_row, round(place.x())) if place.x() <= self.last_step() + 0.5 else ""
        corner = self.mapToGlobal(self.mapFromScene(position))
        QToolTip.showText(corner, plain_tip(words), self) if words else QToolTip.hideText()

    def _choose_row(self, place: int) -> None:
        if place == self._chosen_row:
            return
        self._chosen_row = place
        self._row_line.setVisible(place >= 0)
        self._row_line.setPos(place + 0.5)
        self.row_chosen.emit(place)

    def keyPressEvent(self, ev: QKeyEvent) -> None:  # noqa: N802 -- Qt's name
        """Up and Down go from matrix to matrix, the rest is as in the other plots."""
        rows = len(self._history.modules)
        if ev.key() in _ROW_KEYS and rows:
            self._choose_row(min(max(self._chosen_row + _ROW_KEYS[Qt.Key(ev.key())], 0), rows - 1))
            return
        if ev.key() == Qt.Key.Key_Escape:
            self._choose_row(-1)
        super().keyPressEvent(ev)

    def apply_theme(self) -> None:
        """Take the present scheme's colours."""
        super().apply_theme()
        self._style_lines()
        self._drawn = (-1, 0.0, False)
        if len(self._history):
            self.redraw(self.x_range())

    def _style_lines(self) -> None:
        colors = theme.colors()
        seam = QPen(QColor(colors.surface), 1)
        chosen = QPen(QColor(colors.warning), 1, Qt.PenStyle.DashLine)
        for pen, lines in ((seam, self._seams), (chosen, [self._row_line])):
            pen.setCosmetic(True)
            for line in lines:
                line.setPen(pen)


class RankScale(QWidget):
    """The colours from rank 0 to the highest, with both numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._highest = 0
        self.setFixedSize(120, 20)

    def show_highest(self, highest: int) -> None:
        """The scale goes up to this rank."""
        if highest != self._highest:
            self._highest = highest
            self.setAccessibleName(f"Colours from rank 0 to rank {highest:,}")
            self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802 -- Qt's name
        """0, the colours, and the highest rank."""
        if not self._highest:
            return
        painter = QPainter(self)
        painter.setFont(theme.font("help"))
        painter.setPen(QColor(theme.colors().dim_text))
        middle = Qt.AlignmentFlag.AlignVCenter
        painter.drawText(self.rect(), Qt.AlignmentFlag.AlignLeft | middle, "0")
        painter.drawText(self.rect(), Qt.AlignmentFlag.AlignRight | middle, f"{self._highest:,}")
        bar = QRectF(self.rect()).adjusted(14, 5, -30, -5)
        gradient = QLinearGradient(bar.topLeft(), bar.topRight())
        table = rank_colors(self._highest)
        for place, color in enumerate(table):
            gradient.setColorAt(place / max(len(table) - 1, 1), QColor(*color.tolist()))
        painter.fillRect(bar, gradient)


class RankTools(QWidget):
    """What stands above the heat map: all steps again, and saving."""

    def __init__(self, group: PlotGroup, saver: PlotSaver) -> None:
        super().__init__()
        self.message = label("", "help")
        self.message.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.reset = small_button("arrows-out", "Show all steps (double click in the plot)", group.reset)
        self.setLayout(row(self.reset, SaveButton(saver)))
        self.message.hide()
        self.hide()

    @Slot(str, bool)
    def tell(self, text: str, failed: bool) -> None:
        """Write a line to `message`, which the page has put where there is room for it."""
        self.message.setText(text)
        self.message.setToolTip(plain_tip(text))
        theme.set_role(self.message, "error" if failed else "help")


class RankMap(QObject):
    """The heat map (`picture`) and what stands above it (`tools`, with its `message`).

    Args:
        group: the plots of the same run; zoom and cross-hair are shared.
        name: gives the proposed file name, without its ending.
    """

    def __init__(self, group: PlotGroup, name: Callable[[], str]) -> None:
        super().__init__(group)
        self._group = group
        self._row = -1
        self.plot = RankPlot()
        self.scale = RankScale()
        self.words = ElidedLabel("", "help")
        self.picture = QWidget()
        heading = row(self.words, label("Rank", "help"), self.scale)
        heading.setStretch(0, 1)
        inside = QVBoxLayout(self.picture)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.setSpacing(theme.GRID // 2)
        inside.addLayout(heading)
        inside.addWidget(self.plot, 1)
        self.saver = PlotSaver(self.picture, self._write_table, name)
        self.tools = RankTools(group, self.saver)
        self.saver.told.connect(self.tools.tell)
        group.add(self.plot)
        group.cursor_changed.connect(self._read)
        group.redrawn.connect(self._read)
        self.plot.row_chosen.connect(self._row_chosen)

    @property
    def message(self) -> QLabel:
        """What came of saving."""
        return self.tools.message

    def show_history(self, history: RankHistory, loss: Series) -> None:
        """Show another run; `loss` tells how far it is."""
        self.plot.show_history(history, loss)
        self.message.setText("")

    @Slot(int)
    def _row_chosen(self, place: int) -> None:
        self._row = place
        self._read()

    @Slot()
    def _read(self) -> None:
        """Write the rank of the chosen matrix at the cross-hair, or how many ranks are left in all."""
        history = self.plot.history
        step = self.plot.last_step() if self._group.cursor is None else self._group.cursor
        self.scale.show_highest(history.highest)
        ranks = history.ranks_at(step)
        if self._row >= 0 and len(ranks):
            self.words.set_text(self.plot.words_at(self._row, step))
        elif len(ranks):
            self.words.set_text(f"Step {step:,.0f}: {plural(int(ranks.sum()), 'rank')} in "
                                f"{int((ranks > 0).sum()):,} of {plural(len(ranks), 'matrix', 'matrices')}, at first "
                                f"{int(history.ranks_at(history.steps[0]).sum()):,}")
        else:
            self.words.set_text("")

    def _write_table(self, path: Path) -> None:
        files.write_text(path, self.plot.history.as_csv())


def _short(kind: str) -> str:
    font = theme.font("help")
    font.setPixelSize(11)  # as the axes write
    return QFontMetrics(font).elidedText(kind, Qt.TextElideMode.ElideMiddle, KIND_AXIS_WIDTH - 12)
