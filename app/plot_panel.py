"""What stands around a plot: smoothing, logarithmic scale, reset, and saving as picture or table."""

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QBuffer, QIODevice, QPoint, QSize, Qt, QTimer, Signal, Slot
from PySide6.QtGui import QAction, QImage, QPainter, QRegion
from PySide6.QtWidgets import QCheckBox, QFileDialog, QMenu, QPushButton, QSlider, QWidget

from app import theme
from app.plot_group import PlotGroup
from app.plots import StepPlot
from app.series import DEFAULT_SMOOTHING, Series, as_csv
from app.widgets import label, plain_tip, row
from core import files
from core.errors import describe

PICTURE_SCALE = 2  # pixels of the saved picture for one of the window's


def smoothing_of(position: int) -> float:
    """Weight of the moving average for a slider position: 0 -> 0, 50 -> 0.9, 100 -> 0.99."""
    return 1.0 - 10.0 ** (-position / 50.0)


def save_picture(widget: QWidget, path: Path) -> None:
    """Write what the widget shows as PNG, at twice the resolution. Raises OSError."""
    image = QImage(widget.size() * PICTURE_SCALE, QImage.Format.Format_ARGB32)
    image.setDevicePixelRatio(PICTURE_SCALE)
    image.fill(theme.colors().surface)
    painter = QPainter(image)
    # without the window's own background, which is not that of the card on which it lies
    widget.render(painter, QPoint(0, 0), QRegion(), QWidget.RenderFlag.DrawChildren)
    painter.end()
    buffer = QBuffer()
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    image.save(buffer, "PNG")  # type: ignore[call-overload]
    files.write_bytes(path, bytes(buffer.data().data()))


def save_table(columns: dict[str, Series], path: Path) -> None:
    """Write series as CSV, one line for each step. Raises OSError."""
    files.write_text(path, as_csv(columns))


class SaveButton(QPushButton):
    """Saves what is shown as a picture or a table, where the person says.

    Args:
        picture: the widget that is saved as a picture.
        write_table: writes the numbers; may raise OSError.
        name: gives the proposed file name, without its ending.

    Signals: `told(str, bool)`: what came of it, and whether it failed; `saved(Path)`.
    """

    told = Signal(str, bool)
    saved = Signal(object)

    def __init__(self, picture: QWidget, write_table: Callable[[Path], None], name: Callable[[], str]) -> None:
        super().__init__()
        self._picture, self._write_table, self._name = picture, write_table, name
        _make_small(self, "download-simple", "Save the plot as a picture or a table")
        self.setFixedWidth(54)
        menu = QMenu(self)
        menu.addAction("Picture (PNG)…", self.ask_picture)
        menu.addAction("Table (CSV)…", self.ask_table)
        self.setMenu(menu)

    @Slot()
    def ask_picture(self) -> None:
        """Ask where, and write a PNG."""
        self._save("Save picture", "png", "Pictures (*.png)", lambda path: save_picture(self._picture, path))

    @Slot()
    def ask_table(self) -> None:
        """Ask where, and write a CSV."""
        self._save("Save table", "csv", "Tables (*.csv)", self._write_table)

    def _save(self, title: str, ending: str, kinds: str, write: Callable[[Path], None]) -> None:
        chosen, _ = QFileDialog.getSaveFileName(self, title, f"{self._name()}.{ending}", kinds)
        if not chosen:
            return
        path = Path(chosen)
        if path.suffix.lower() != f".{ending}":
            path = path.with_name(f"{path.name}.{ending}")
        try:
            write(path)
        except OSError as error:
            words = describe(error)
            self.told.emit(f"{words.message} {words.hint}", True)
            return
        self.told.emit(f"Saved {path.name}.", False)
        self.saved.emit(path)


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
        self._group, self._main = group, main
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
        self.save = SaveButton(picture, lambda path: save_table(columns(), path), name)
        self.save.told.connect(self.tell)
        self.save.saved.connect(self.saved)
        self.message = label("", "help")
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(50)
        self._settle.timeout.connect(self._smoothing_settled)
        self.smoothing.valueChanged.connect(self._smoothing_moved)
        self.log.toggled.connect(self._log_toggled)
        main.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        main.customContextMenuRequested.connect(self._context_menu)
        self.setLayout(row(label("Smoothing", "help"), self.smoothing, self._weight, self.log, self.reset, self.save))

    @Slot(QPoint)
    def _context_menu(self, place: QPoint) -> None:
        menu = QMenu(self)
        menu.addAction("Show all steps", self._group.reset)
        log = QAction("Log scale", menu, checkable=True, checked=self.log.isChecked())
        log.toggled.connect(self.log.setChecked)
        menu.addAction(log)
        menu.addSeparator()
        menu.addAction("Save picture (PNG)…", self.save.ask_picture)
        menu.addAction("Save table (CSV)…", self.save.ask_table)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.popup(self._main.mapToGlobal(place))

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

    @Slot(bool)
    def _log_toggled(self, log: bool) -> None:
        self._main.set_log(log)
        self._group.redraw()

    @Slot(str, bool)
    def tell(self, text: str, failed: bool = False) -> None:
        """Write a line to `message`, which the page has put where there is room for it."""
        self.message.setText(text)
        self.message.setToolTip(plain_tip(text))
        theme.set_role(self.message, "error" if failed else "help")


def small_button(icon: str, tip: str, slot: Callable[[], object]) -> QPushButton:
    """A button of one icon in the row of tools above a plot."""
    made = QPushButton()
    made.clicked.connect(lambda _checked: slot())
    _make_small(made, icon, tip)
    return made


def _make_small(made: QPushButton, icon: str, tip: str) -> None:
    made.setIcon(theme.icon(icon))
    made.setToolTip(plain_tip(tip))
    made.setAccessibleName(tip)
    made.setFixedSize(42, 32)
    made.setIconSize(QSize(theme.ICON_SIZE, theme.ICON_SIZE))
