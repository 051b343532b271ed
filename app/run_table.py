"""The table of runs: a model with tick boxes over summaries, and the view that shows it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, QSortFilterProxyModel, Qt, Signal
from PySide6.QtGui import QIcon, QPainter, QPen, QPixmap
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableView

from app import figures, theme
from app.plots import curve_pen
from app.widgets import plain_tip
from core.runs.history import RunSummary

MOST_TICKED = 12
SORT_ROLE = Qt.ItemDataRole.UserRole
_STATES = {  # icon, colour, word
    "running": ("play-circle", "accent_text", "running"),
    "finished": ("check-circle", "good_text", "finished"),
    "stopped": ("stop-circle", "dim_text", "stopped"),
    "interrupted": ("warning", "warning_text", "broke off"),
    "failed": ("x-circle", "danger_text", "failed"),
    "damaged": ("x-circle", "danger_text", "damaged"),
    "new": ("circle-dashed", "dim_text", "not started"),
}
Index = QModelIndex | QPersistentModelIndex


def when(seconds: float) -> str:
    """A point in time: today 14:05, else 24 Nov 14:05, with the year where it is another one."""
    if not seconds:
        return ""
    moment, now = time.localtime(seconds), time.localtime()
    if moment[:3] == now[:3]:
        return time.strftime("today %H:%M", moment)
    year = "" if moment.tm_year == now.tm_year else f" {moment.tm_year}"
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[moment.tm_mon - 1]
    return f"{moment.tm_mday} {month}{year} {moment.tm_hour:02}:{moment.tm_min:02}"


_LAST = math.inf  # what is not known is sorted to the end


@dataclass(frozen=True)
class Column:
    """A column of the table: its title and width, what a cell shows, what it is sorted by."""

    title: str
    width: int  # pixels
    text: Callable[[RunSummary], str]
    key: Callable[[RunSummary], Any]
    number: bool = False


def _method(run: RunSummary) -> str:
    return f"{run.method}, rank {run.rank}" if run.method and run.rank else run.method


def _steps(run: RunSummary) -> str:
    total = f" of {run.steps_total:,}" if run.steps_total else ""
    return f"{run.steps_done:,}{total}" if run.steps_total or run.steps_done else ""


def _loss(value: float | None) -> str:
    return figures.loss(value) if value is not None else ""


def _known(value: float | None) -> float:
    return value if value is not None and not math.isnan(value) else _LAST


COLUMNS = (
    Column("Run", 184, lambda run: run.name, lambda run: run.name.casefold()),
    Column("State", 108, lambda run: _STATES[run.state][2], lambda run: run.state),
    Column("Started", 116, lambda run: when(run.started), lambda run: run.started),
    Column("Duration", 100, lambda run: "" if run.seconds is None else figures.span(run.seconds),
           lambda run: _known(run.seconds), number=True),
    Column("Steps", 108, _steps, lambda run: run.steps_done, number=True),
    Column("Loss", 62, lambda run: _loss(run.last_loss), lambda run: _known(run.last_loss), number=True),
    Column("Validation", 84, lambda run: _loss(run.best_validation_loss),
           lambda run: _known(run.best_validation_loss), number=True),
    Column("Method", 110, _method, lambda run: f"{run.method} {run.rank:06}"),
    Column("Model", 160, lambda run: run.model, lambda run: run.model.casefold()),
)
_NAME, _STATE, _STARTED = 0, 1, 2


class RunTableModel(QAbstractTableModel):
    """Rows of `RunSummary`; the first column is ticked and edited.

    Signals: `ticked()` when the ticked runs changed; `rename_asked(RunSummary, str)`;
    `too_many()` when one more tick was refused.
    """

    ticked = Signal()
    rename_asked = Signal(object, str)
    too_many = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._runs: list[RunSummary] = []
        self._ticked: dict[Path, int] = {}  # folder -> index of its curve's colour

    def set_runs(self, runs: list[RunSummary]) -> None:
        """Show these; ticks stay where the folder is still there."""
        if [run.folder for run in runs] == [run.folder for run in self._runs]:
            changed = [row for row, run in enumerate(runs) if run != self._runs[row]]
            self._runs = runs
            for row in changed:
                self.dataChanged.emit(self.index(row, 0), self.index(row, len(COLUMNS) - 1))
            return
        self.beginResetModel()
        self._runs = runs
        self.endResetModel()
        gone = set(self._ticked) - {run.folder for run in runs}
        for folder in gone:
            del self._ticked[folder]
        if gone:
            self.ticked.emit()

    @property
    def runs(self) -> list[RunSummary]:
        """All rows."""
        return self._runs

    def ticked_runs(self) -> list[tuple[RunSummary, int]]:
        """The ticked runs with the index of their curve's colour, in the order in which they were ticked."""
        by_folder = {run.folder: run for run in self._runs}
        return [(by_folder[folder], color) for folder, color in self._ticked.items() if folder in by_folder]

    def tick(self, folder: Path, on: bool = True) -> bool:
        """Tick or untick a run. False if there are too many already."""
        if on and folder not in self._ticked:
            if len(self._ticked) >= MOST_TICKED:
                self.too_many.emit()
                return False
            self._ticked[folder] = next(color for color in range(MOST_TICKED) if color not in self._ticked.values())
        elif not on:
            self._ticked.pop(folder, None)
        self.dataChanged.emit(self.index(0, 0), self.index(max(0, len(self._runs) - 1), 0))
        self.ticked.emit()
        return True

    def moved(self, before: Path, after: Path) -> None:
        """A run was renamed: its tick goes with it."""
        if before in self._ticked:
            self._ticked = {after if folder == before else folder: color for folder, color in self._ticked.items()}

    # --- what Qt asks ----------------------------------------------------------------------

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008 -- Qt's name and default
        """Number of runs."""
        return 0 if parent.isValid() else len(self._runs)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008
        """Number of columns."""
        return 0 if parent.isValid() else len(COLUMNS)

    def headerData(self, section: int, orientation: Qt.Orientation,  # noqa: N802
                   role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Titles of the columns."""
        if orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _alignment(section)
        return COLUMNS[section].title if role == Qt.ItemDataRole.DisplayRole else None

    def flags(self, index: Index) -> Qt.ItemFlag:
        """The name is ticked and edited."""
        flags = super().flags(index)
        if index.column() == _NAME:
            flags |= Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsEditable
        return flags

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """What a cell shows."""
        run = self._runs[index.row()]
        column = index.column()
        if role == Qt.ItemDataRole.DisplayRole:
            return COLUMNS[column].text(run)
        if role == Qt.ItemDataRole.EditRole:
            return run.name
        if role == SORT_ROLE:
            return COLUMNS[column].key(run)
        if role == Qt.ItemDataRole.ToolTipRole:
            return plain_tip(run.problem or (run.name if column == _NAME else ""))
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _alignment(column)
        return self._decoration(run, column, role)

    def _decoration(self, run: RunSummary, column: int, role: int) -> Any:
        if role == Qt.ItemDataRole.CheckStateRole and column == _NAME:
            return Qt.CheckState.Checked if run.folder in self._ticked else Qt.CheckState.Unchecked
        if role == Qt.ItemDataRole.DecorationRole and column == _STATE:
            name, tint, _ = _STATES[run.state]
            return theme.icon(name, tint)
        if role == Qt.ItemDataRole.DecorationRole and column == _NAME and run.folder in self._ticked:
            return _swatch(self._ticked[run.folder])
        return None

    def setData(self, index: Index, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:  # noqa: N802
        """A tick, or another name."""
        run = self._runs[index.row()]
        if role == Qt.ItemDataRole.CheckStateRole:
            return self.tick(run.folder, Qt.CheckState(value) == Qt.CheckState.Checked)
        if role == Qt.ItemDataRole.EditRole and str(value).strip() not in ("", run.name):
            self.rename_asked.emit(run, str(value).strip())
        return False


class RunTable(QTableView):
    """The view: whole rows, sorted by a click on a title, keys Space (tick), F2 (rename), Delete, Enter."""

    def __init__(self, model: RunTableModel) -> None:
        super().__init__()
        self._source = model
        self._proxy = QSortFilterProxyModel()
        self._proxy.setSourceModel(model)
        self._proxy.setSortRole(SORT_ROLE)
        self.setModel(self._proxy)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.EditKeyPressed)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setSortingEnabled(True)
        self.sortByColumn(_STARTED, Qt.SortOrder.DescendingOrder)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(30)
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        header.setStretchLastSection(True)
        for place, column in enumerate(COLUMNS):
            self.setColumnWidth(place, column.width)
        self.setAccessibleName("Runs")
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)

    def selected(self) -> RunSummary | None:
        """The run of the chosen row."""
        index = self.currentIndex()
        row = self._proxy.mapToSource(index).row() if index.isValid() else -1
        return self._source.runs[row] if 0 <= row < len(self._source.runs) else None

    def select(self, folder: Path) -> None:
        """Choose a run's row."""
        for row, run in enumerate(self._source.runs):
            if run.folder == folder:
                self.setCurrentIndex(self._proxy.mapFromSource(self._source.index(row, 0)))

    def edit_name(self) -> None:
        """Write another name into the chosen row."""
        index = self.currentIndex()
        if index.isValid():
            self.edit(index.siblingAtColumn(_NAME))


def _alignment(column: int) -> Qt.AlignmentFlag:
    side = Qt.AlignmentFlag.AlignRight if COLUMNS[column].number else Qt.AlignmentFlag.AlignLeft
    return side | Qt.AlignmentFlag.AlignVCenter


def _swatch(color: int) -> QIcon:
    picture = QPixmap(32, 32)
    picture.setDevicePixelRatio(2)
    picture.fill(Qt.GlobalColor.transparent)
    painter = QPainter(picture)
    pen = QPen(curve_pen(color))
    pen.setWidthF(3)
    painter.setPen(pen)
    painter.drawLine(0, 8, 16, 8)
    painter.end()
    return QIcon(picture)
