"""What stands around a plot: smoothing, logarithmic scale, reset, and saving as picture or table."""

from collections.abc import Callable

from PySide6.QtCore import QPoint, Qt, QTimer, Signal, Slot
from PySide6.QtWidgets import QCheckBox, QMenu, QSlider, QWidget

from app import theme
from app.plot_group import PlotGroup
from app.plot_saving import PlotSaver, SaveButton, save_table, small_button
from app.plots import StepPlot
from app.series import DEFAULT_SMOOTHING, Series
from app.widgets import label, plain_tip, row


def smoothing_of(position: int) -> float:
    """Weight of the moving average for a slider position: 0 -> 0, 50 -> 0.9, 100 -> 0.99."""
    return 1.0 - 10.0 ** (-position / 50.0)


class PlotMenu(QMenu):
    """What a right click on a plot offers: all steps, logarithmic scale, saving.

    Args:
        group: the plots that it belongs to.
        plot: the plot that is clicked and whose scale is switched.
        saver: asks where and saves.
    """

    def __init__(self, group: PlotGroup, plot: StepPlot, saver: PlotSaver) -> None:
        super().__init__(plot)
        self._group, self._plot = group, plot
        self.addAction("Show all steps", group.reset)
        self.log = self.addAction("Log scale")
        self.log.setCheckable(True)
        self.log.toggled.connect(self._log_toggled)
        self.addSeparator()
        self.addAction("Save picture (PNG)…", saver.ask_picture)
        self.addAction("Save table (CSV)…", saver.ask_table)
        plot.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        plot.customContextMenuRequested.connect(self._open)

    @Slot(QPoint)
    def _open(self, place: QPoint) -> None:
        self.popup(self._plot.mapToGlobal(place))

    @Slot(bool)
    def _log_toggled(self, log: bool) -> None:
        self._plot.set_log(log)
        self._group.redraw()


class PlotTools(QWidget):
    """The row of tools above a plot.

    Args:
        group: the plots that reset, zoom and logarithmic scale act on.
        main: the plot whose scale the switch changes.
        picture: the widget that is saved as a picture.
        columns: gives the series for the table.
        name: gives the proposed file name, without its ending.
    """

    smoothing_changed = Signal(float)
    saved = Signal(object)  # Path

    def __init__(self, group: PlotGroup, main: StepPlot, picture: QWidget,
                 columns: Callable[[], dict[str, Series]], name: Callable[[], str]) -> None:
        super().__init__()
        self.smoothing = QSlider(Qt.Orientation.Horizontal)
        self.smoothing.setRange(0, 100)
        self.smoothing.setValue(50)
        self.smoothing.setFixedWidth(80)
        self.smoothing.setAccessibleName("Smoothing")
        self.smoothing.setToolTip(plain_tip("How much the strong line is averaged over the steps before."))
        self._weight = label(f"{DEFAULT_SMOOTHING:.2f}", "help")
        self._weight.setFixedWidth(28)
        self.log = QCheckBox("Log scale")
        self.log.setToolTip(plain_tip("Equal distances for equal factors: shows small losses in detail."))
        self.reset = small_button("arrows-out", "Show all steps (double click in the plot)", group.reset)
        self.saver = PlotSaver(picture, lambda path: save_table(columns(), path), name)
        self.saver.told.connect(self.tell)
        self.saver.saved.connect(self.saved)
        self.message = label("", "help")
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(50)
        self._settle.timeout.connect(self._smoothing_settled)
        self.smoothing.valueChanged.connect(self._smoothing_moved)
        self.menu = PlotMenu(group, main, self.saver)
        self.log.toggled.connect(self.menu.log.setChecked)
        self.menu.log.toggled.connect(self.log.setChecked)
        self.setLayout(row(label("Smoothing", "help"), self.smoothing, self._weight, self.log, self.reset,
                           SaveButton(self.saver)))

    @Slot(int)
    def _smoothing_moved(self, position: int) -> None:
        weight = smoothing_of(position)
        self._weight.setText(f"{weight:.2f}")
        if self.smoothing.isSliderDown():
            self._settle.start()  # a long run takes a while to average: not at every pixel
        else:
            self._smoothing_settled()

    @Slot()
    def _smoothing_settled(self) -> None:
        self.smoothing_changed.emit(smoothing_of(self.smoothing.value()))

    @Slot(str, bool)
    def tell(self, text: str, failed: bool = False) -> None:
        """Write a line to `message`, which the page has put where there is room for it."""
        self.message.setText(text)
        self.message.setToolTip(plain_tip(text))
        theme.set_role(self.message, "error" if failed else "help")
