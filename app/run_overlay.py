"""The curves of several runs over each other, one quantity at a time."""

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import Signal, Slot
from PySide6.QtWidgets import QComboBox, QSizePolicy, QStackedLayout, QVBoxLayout, QWidget

from app import figures
from app.background import Background
from app.plot_group import PlotGroup
from app.plot_panel import PlotTools, smoothing_of
from app.plots import Curve, StepPlot
from app.read_out import ReadOut
from app.series import RunSeries, Series
from app.widgets import Card, EmptyState, row
from core.runs.folder import RunFolder
from core.runs.history import RunSummary

_QUANTITIES = (  # attribute of RunSeries, words, drawn as points
    ("loss", "Loss", False), ("validation_loss", "Validation loss", True),
    ("learning_rate", "Learning rate", False), ("grad_norm", "Gradient norm", False),
    ("tokens_per_second", "Tokens/s", False), ("memory", "Memory, GB", False),
)


class RunOverlay(Card):
    """Shows the ticked runs. Logs are read away from the window's thread, and again when they grew.

    Signals: `failed(Failed)` where a log can not be read.
    """

    failed = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._runs: list[tuple[RunSummary, int]] = []
        self._series: dict[Path, tuple[int, RunSeries]] = {}  # with the number of steps that were read
        self._reader = Background(self)
        self.group = PlotGroup(self)
        self.plot = self.group.add(StepPlot("Curves of the ticked runs", levels=False))
        self.read_out = ReadOut("0.00000")
        self.quantity = QComboBox()
        self.quantity.setAccessibleName("Quantity")
        for key, words, _ in _QUANTITIES:
            self.quantity.addItem(words, key)
        self.quantity.setMaximumWidth(150)
        picture = QWidget()
        inside = QVBoxLayout(picture)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.setSpacing(4)
        inside.addWidget(self.read_out)
        inside.addWidget(self.plot, 1)
        self.tools = PlotTools(self.group, self.plot, picture, self._columns, lambda: "runs")
        self.tools.message.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        heading = row(self.quantity, self.tools.message, self.tools)
        heading.setStretch(1, 1)
        self.body.addLayout(heading)
        self._stack = QStackedLayout()
        self._stack.addWidget(EmptyState("Tick runs in the table to lay their curves over each other."))
        self._stack.addWidget(picture)
        self.body.addLayout(self._stack, 1)
        self.quantity.currentIndexChanged.connect(self._draw)
        self.tools.smoothing_changed.connect(self._smooth)
        self.group.cursor_changed.connect(self._read)
        self.group.redrawn.connect(self._read)

    def show_runs(self, runs: Sequence[tuple[RunSummary, int]]) -> None:
        """Show these runs, each with the index of its colour."""
        self._runs = list(runs)
        self._series = {run.folder: self._series[run.folder] for run, _ in runs if run.folder in self._series}
        self._draw()
        self._load()

    def update_runs(self, runs: Sequence[tuple[RunSummary, int]]) -> None:
        """The same runs, perhaps further on."""
        self._runs = list(runs)
        self._load()

    @property
    def curves(self) -> list[Curve]:
        """What is drawn."""
        return self.plot.curves

    def _load(self) -> None:
        missing = [(run.folder, run.steps_done) for run, _ in self._runs
                   if run.folder not in self._series or self._series[run.folder][0] != run.steps_done]
        if not missing or self._reader.busy:
            return
        weight = self._weight

        def read() -> dict[Path, tuple[int, RunSeries]]:
            return {folder: (steps, RunSeries.from_events(RunFolder(folder).read_events(), weight))
                    for folder, steps in missing}

        self._reader.call(read, self._loaded, self.failed.emit)

    @property
    def _weight(self) -> float:
        return smoothing_of(self.tools.smoothing.value())

    def _loaded(self, read: dict[Path, tuple[int, RunSeries]]) -> None:
        wanted = {run.folder for run, _ in self._runs}
        self._series.update({folder: one for folder, one in read.items() if folder in wanted})
        self._draw()
        self._load()  # runs that were ticked meanwhile

    @Slot()
    def _draw(self) -> None:
        key, _, points = _QUANTITIES[self.quantity.currentIndex()]
        curves, cells = [], []
        for run, color in self._runs:
            if run.folder not in self._series:
                continue
            series: Series = getattr(self._series[run.folder][1], key)
            curves.append(Curve(run.name, series, color, smoothed=series.smoothing > 0, points=points))
            cells.append(("points" if points else "line", color, run.name))
        self.read_out.set_cells(cells)
        self.plot.set_curves(curves)
        self._stack.setCurrentIndex(1 if self._runs else 0)
        self.group.redraw()

    @Slot(float)
    def _smooth(self, weight: float) -> None:
        for _, series in self._series.values():
            series.set_smoothing(weight)
        self._draw()

    @Slot()
    def _read(self) -> None:
        step = self.group.cursor
        at = float("inf") if step is None else step
        values = [curve.series.smoothed_at(at) if curve.smoothed else curve.series.value_at(at)
                  for curve in self.plot.curves]
        self.read_out.show_values(step, [figures.number(value) for value in values])

    def _columns(self) -> dict[str, Series]:
        return {curve.name: curve.series for curve in self.plot.curves}
