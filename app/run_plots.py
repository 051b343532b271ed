"""The plots of one run: the loss large, four small ones beside it, one cross-hair through all."""

from collections.abc import Callable

from PySide6.QtCore import QSize, Qt, Signal, Slot
from PySide6.QtGui import QFontMetrics
from PySide6.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QSplitter,
    QStackedLayout,
    QTabBar,
    QVBoxLayout,
    QWidget,
)

from app import figures, theme
from app.figures import NOT_KNOWN
from app.plot_group import PlotGroup
from app.plot_panel import PlotMenu, PlotTools
from app.plot_saving import PlotSaver, save_table
from app.plots import Curve, StepPlot
from app.rank_history import RankHistory
from app.rank_map import RankMap
from app.read_out import ReadOut
from app.series import RunSeries, Series
from app.widgets import Card, label, plain_tip, row

_SMALL = (  # attribute of RunSeries, caption, colour of the curve
    ("learning_rate", "Learning rate", 2),
    ("grad_norm", "Gradient norm", 3),
    ("tokens_per_second", "Tokens/s", 4),
    ("memory", "Memory, GB", 5),
)


class RunPlots(QWidget):
    """Shows a `RunSeries`; call `changed` after it grew."""

    smoothing_changed = Signal(float)

    def __init__(self, name: Callable[[], str]) -> None:
        super().__init__()
        self._series, self._name = RunSeries(), name
        self.group = PlotGroup(self)
        self.loss = self.group.add(StepPlot("Loss over the steps"))
        self.read_out = ReadOut()
        self.ranks = RankMap(self.group, lambda: f"{name()} ranks")
        self._small: dict[str, tuple[StepPlot, QLabel]] = {}
        self._loss_card = self._build_loss(name)
        splitter = QSplitter(Qt.Orientation.Horizontal)
        splitter.addWidget(self._loss_card)
        splitter.addWidget(self._build_small())
        splitter.setHandleWidth(theme.CARD_GAP)
        splitter.setChildrenCollapsible(False)
        splitter.setStretchFactor(0, 13)
        splitter.setStretchFactor(1, 7)
        splitter.setSizes([650, 350])
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(splitter)
        self.group.cursor_changed.connect(self._read)
        self.group.redrawn.connect(self._read)
        self.tools.smoothing_changed.connect(self._smooth)
        self.show_series(self._series)

    def _build_loss(self, name: Callable[[], str]) -> Card:
        card = Card()
        picture = QWidget()
        inside = QVBoxLayout(picture)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.setSpacing(theme.GRID // 2)
        inside.addWidget(self.read_out)
        inside.addWidget(self.loss, 1)
        self.tools = PlotTools(self.group, self.loss, picture, self._columns, name)
        self.tools.message.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self._title = label("Loss", "section")
        self.views = QTabBar()  # only for runs whose ranks move
        self.views.setDrawBase(False)
        self.views.setAccessibleName("What the large plot shows")
        for words in ("Loss", "Ranks"):
            self.views.addTab(words)
        self.views.setTabToolTip(1, plain_tip("A row for each matrix: by kind, the lowest layer on top. Its colour "
                                              "is the rank that it has at a step."))
        self.views.currentChanged.connect(self._view_changed)
        heading = row(self._title, self.views, self.tools.message, self.tools, self.ranks.message, self.ranks.tools)
        for place in (2, 4):
            heading.setStretch(place, 1)
        self._stack = QStackedLayout()
        self._stack.addWidget(picture)
        self._stack.addWidget(self.ranks.picture)
        card.body.addLayout(heading)
        card.body.addLayout(self._stack, 1)
        return card

    def _show_views(self) -> None:
        """Offer the ranks where there are any."""
        moves = len(self.ranks.plot.history) > 0
        self._title.setVisible(not moves)
        self.views.setVisible(moves)
        if not moves:
            self.views.setCurrentIndex(0)

    @Slot(int)
    def _view_changed(self, place: int) -> None:
        self._stack.setCurrentIndex(place)
        for tools, shown in ((self.tools, place == 0), (self.ranks.tools, place == 1)):
            tools.setVisible(shown)
            tools.message.setVisible(shown)
        self.group.redraw()

    def _build_small(self) -> Card:
        card = Card()
        card.body.setSpacing(2)
        for number, (key, caption, _) in enumerate(_SMALL):
            last = number == len(_SMALL) - 1
            plot = self.group.add(StepPlot(f"{caption} over the steps", small=True, show_steps=last))
            saver = PlotSaver(plot, lambda path, key=key: save_table({key: getattr(self._series, key)}, path),
                              lambda key=key: f"{self._name()} {key.replace('_', ' ')}")
            saver.told.connect(self.tools.tell)
            PlotMenu(self.group, plot, saver)
            value = label(NOT_KNOWN, "strong")
            value.setAlignment(Qt.AlignmentFlag.AlignRight)
            value.setMinimumWidth(QFontMetrics(theme.font("section")).horizontalAdvance("00,000.0"))
            card.body.addLayout(row(label(caption, "help"), None, value))
            card.body.addWidget(plot, 5 if last else 4)
            self._small[key] = (plot, value)
        return card

    def _columns(self) -> dict[str, Series]:
        return self._series.everything()

    @property
    def smoothing(self) -> float:
        """The weight that the slider stands at."""
        return self._series.loss.smoothing

    def show_series(self, series: RunSeries, ranks: RankHistory | None = None) -> None:
        """Draw another run; `ranks` of one whose ranks move."""
        self._series = series
        self.ranks.show_history(ranks if ranks is not None else RankHistory(), series.loss)
        self._show_views()
        self.loss.set_curves([
            Curve("loss", series.loss, 0, smoothed=True),
            Curve("validation", series.validation_loss, 1, points=True),
        ])
        self.read_out.set_cells([("raw", 0, "step"), ("line", 0, "average"), ("points", 1, "validation")])
        for key, _, color in _SMALL:
            one: Series = getattr(series, key)
            self._small[key][0].set_curves([Curve(key, one, color, smoothed=one.smoothing > 0)])
        self.group.point_at(None)
        self.group.reset()

    def changed(self) -> None:
        """The series grew."""
        self._show_views()
        self.group.changed()

    @Slot(float)
    def _smooth(self, weight: float) -> None:
        self._series.set_smoothing(weight)
        self.group.redraw()
        self.smoothing_changed.emit(weight)

    @Slot()
    def _read(self) -> None:
        """Write every series' value at the cross-hair, or its newest."""
        step = self.group.cursor
        at = float("inf") if step is None else step
        series = self._series
        self.read_out.show_values(step, [
            _loss_text(series.loss, series.loss.value_at(at)),
            _loss_text(series.loss, series.loss.smoothed_at(at)),
            _loss_text(series.validation_loss, series.validation_loss.value_at(at)),
        ])
        for key, (_, value) in self._small.items():
            value.setText(figures.number(getattr(series, key).value_at(at)))

    def values(self) -> dict[str, str]:
        """What the small plots read now, by series."""
        return {key: value.text() for key, (_, value) in self._small.items()}

    def sizeHint(self) -> QSize:  # noqa: N802 -- Qt's name
        """Half of a page."""
        return QSize(900, 380)


def _loss_text(series: Series, value: float) -> str:
    return figures.loss(value) if len(series) else NOT_KNOWN
