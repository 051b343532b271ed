"""Saving what a plot shows, and the small buttons above a plot of which saving is one."""

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QBuffer, QIODevice, QObject, QPoint, QSize, Signal, Slot
from PySide6.QtGui import QImage, QRegion
from PySide6.QtWidgets import QFileDialog, QMenu, QPushButton, QWidget

from app import theme
from app.series import Series, as_csv
from app.widgets import plain_tip
from core import files
from core.errors import describe

PICTURE_SCALE = 2  # pixels of the saved picture for one of the window's


def save_picture(widget: QWidget, path: Path) -> None:
    """Write what the widget shows as PNG, at twice the resolution. Raises OSError."""
    image = QImage(widget.size() * PICTURE_SCALE, QImage.Format.Format_ARGB32)
    image.setDevicePixelRatio(PICTURE_SCALE)
    image.fill(theme.colors().surface)
    # Without the window's own background, which is not that of the card on which it lies. QWidget's method, as a plot
    # has another one of that name, with other arguments.
    QWidget.render(widget, image, QPoint(0, 0), QRegion(), QWidget.RenderFlag.DrawChildren)
    buffer = QBuffer()
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    image.save(buffer, "PNG")  # type: ignore[call-overload]
    files.write_bytes(path, bytes(buffer.data().data()))


def save_table(columns: dict[str, Series], path: Path) -> None:
    """Write series as CSV, one line for each step. Raises OSError."""
    files.write_text(path, as_csv(columns))


class PlotSaver(QObject):
    """Saves what a plot shows as a picture or a table, where the person says.

    Args:
        picture: the widget that is saved as a picture.
        write_table: writes the numbers; may raise OSError.
        name: gives the proposed file name, without its ending.

    Signals: `told(str, bool)`: what came of it, and whether it failed; `saved(Path)`.
    """

    told = Signal(str, bool)
    saved = Signal(object)

    def __init__(self, picture: QWidget, write_table: Callable[[Path], None], name: Callable[[], str]) -> None:
        super().__init__(picture)
        self._picture, self._write_table, self._name = picture, write_table, name

    @Slot()
    def ask_picture(self) -> None:
        """Ask where, and write a PNG."""
        self._save("Save picture", "png", "Pictures (*.png)", lambda path: save_picture(self._picture, path))

    @Slot()
    def ask_table(self) -> None:
        """Ask where, and write a CSV."""
        self._save("Save table", "csv", "Tables (*.csv)", self._write_table)

    def _save(self, title: str, ending: str, kinds: str, write: Callable[[Path], None]) -> None:
        chosen, _ = QFileDialog.getSaveFileName(self._picture, title, f"{self._name()}.{ending}", kinds)
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


class SaveButton(QPushButton):
    """A small button that offers both ways of saving."""

    def __init__(self, saver: PlotSaver) -> None:
        super().__init__()
        _make_small(self, "download-simple", "Save the plot as a picture or a table")
        self.setFixedWidth(54)
        menu = QMenu(self)
        menu.addAction("Picture (PNG)…", saver.ask_picture)
        menu.addAction("Table (CSV)…", saver.ask_table)
        self.setMenu(menu)


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
