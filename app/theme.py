"""Colours, measures, fonts and icons: the one hand that makes every page.

Widgets never hold a colour: they ask `colors()` when they paint, and give labels and frames a
`role` (see `app.widgets`). Changing the scheme sets a new palette, every widget then receives a
PaletteChange event and repaints. `icon(name)` tints itself whenever it is painted.
"""

import sys
from typing import Any, Literal

from PySide6.QtCore import QObject, QPoint, QRect, QSize, Qt, Signal, Slot
from PySide6.QtGui import QColor, QFont, QFontDatabase, QGuiApplication, QIcon, QIconEngine, QPainter, QPalette, QPixmap
from PySide6.QtWidgets import QApplication, QWidget

from app.colors import DARK, LIGHT, Colors
from app.stylesheet import stylesheet

Scheme = Literal["system", "light", "dark"]
FontKind = Literal["title", "section", "body", "help", "mono"]

GRID = 8  # pixels; every distance is a multiple
PAGE_MARGIN = 24
CARD_GAP = 16
CARD_MARGIN = 16
ICON_SIZE = 16
ICON_GAP = 4  # more space between the icon of a button and its words

# Okabe and Ito's colours that stay apart for colour-blind eyes; for curves, in this order
CURVES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
RAW_CURVE_OPACITY = 0.35


def colors() -> Colors:
    """The colours of the present scheme, told from the application's palette."""
    return DARK if QGuiApplication.palette().color(QPalette.ColorRole.Window).lightness() < 128 else LIGHT


def font(kind: FontKind = "body") -> QFont:
    """A font of the system's family: title 20 px and section 14 px semibold, body 13, help 12, mono 12."""
    if kind == "mono":
        chosen = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
    else:
        chosen = QFont(QGuiApplication.font())
    chosen.setPixelSize({"title": 20, "section": 14, "body": 13, "help": 12, "mono": 12}[kind])
    chosen.setWeight(QFont.Weight.DemiBold if kind in ("title", "section") else QFont.Weight.Normal)
    chosen.setFeature(QFont.Tag("tnum"), 1)  # digits of one width: numbers that change do not jump
    return chosen


class Theme(QObject):
    """Puts a scheme on the application and follows the system's while the choice is "system"."""

    changed = Signal()

    def __init__(self, app: QApplication, scheme: Scheme = "system") -> None:
        super().__init__(app)
        self._app = app
        self._scheme: Scheme = scheme
        if app.style().name().lower() != "fusion":
            app.setStyle("Fusion")
        base = app.font()
        base.setPixelSize(13)
        base.setFeature(QFont.Tag("tnum"), 1)
        app.setFont(base)
        app.styleHints().colorSchemeChanged.connect(self._system_changed)
        self.set_scheme(scheme)

    @property
    def scheme(self) -> Scheme:
        """What the person chose."""
        return self._scheme

    def set_scheme(self, scheme: Scheme) -> None:
        """Change to the system's scheme, light or dark, at once and everywhere."""
        self._scheme = scheme
        wanted = {"system": Qt.ColorScheme.Unknown, "light": Qt.ColorScheme.Light, "dark": Qt.ColorScheme.Dark}[scheme]
        self._app.styleHints().setColorScheme(wanted)
        self._apply()

    @Slot()
    def _system_changed(self) -> None:
        self._apply()

    def _apply(self) -> None:
        if self._scheme == "system":
            dark = self._app.styleHints().colorScheme() == Qt.ColorScheme.Dark
        else:
            dark = self._scheme == "dark"
        chosen = DARK if dark else LIGHT
        self._app.setPalette(palette(chosen))
        self._app.setStyleSheet(stylesheet(chosen))
        self.changed.emit()


def palette(chosen: Colors) -> QPalette:
    """The QPalette of a scheme."""
    roles = QPalette.ColorRole
    made = QPalette()
    for role, value in {
        roles.Window: chosen.window, roles.WindowText: chosen.text, roles.Base: chosen.surface,
        roles.AlternateBase: chosen.window, roles.Text: chosen.text, roles.Button: chosen.surface,
        roles.ButtonText: chosen.text, roles.BrightText: chosen.danger, roles.Highlight: chosen.accent_soft,
        roles.HighlightedText: chosen.text, roles.Accent: chosen.accent, roles.Link: chosen.accent_text,
        roles.LinkVisited: chosen.accent_text, roles.ToolTipBase: chosen.surface, roles.ToolTipText: chosen.text,
        roles.PlaceholderText: chosen.dim_text, roles.Mid: chosen.border, roles.Midlight: chosen.hover,
    }.items():
        made.setColor(role, QColor(value))
    for role in (roles.WindowText, roles.Text, roles.ButtonText, roles.HighlightedText):
        made.setColor(QPalette.ColorGroup.Disabled, role, QColor(chosen.disabled_text))
    return made


def icon(name: str, role: str = "text") -> QIcon:
    """An icon of the Phosphor set, for example "play" or "folder-open".

    Args:
        name: the icon's name in the set.
        role: the field of `Colors` that tints it, looked up at every painting.
    """
    return QIcon(_TintedEngine(name, role))


def load_icons() -> None:
    """Import the icon set. Before this icons paint nothing, so that the first window need not wait for it."""
    import qtawesome  # noqa: PLC0415 -- half a second that the first window must not pay

    qtawesome.icon("ph.circle")
    for widget in QApplication.topLevelWidgets():  # repaints what lies in them, too
        widget.update()


class _TintedEngine(QIconEngine):
    def __init__(self, name: str, role: str) -> None:
        super().__init__()
        self._name = name
        self._role = role

    def paint(self, painter: QPainter, rect: QRect, mode: QIcon.Mode, state: QIcon.State) -> None:
        qtawesome: Any = sys.modules.get("qtawesome")
        if qtawesome is None:
            return
        rect = QRect(rect.topLeft(), QSize(rect.height(), rect.height()))  # a wider one keeps space at the right
        role = "disabled_text" if mode == QIcon.Mode.Disabled else self._role
        qtawesome.icon(f"ph.{self._name}", color=getattr(colors(), role)).paint(painter, rect)

    def pixmap(self, size: QSize, mode: QIcon.Mode, state: QIcon.State) -> QPixmap:
        picture = QPixmap(size)
        picture.fill(Qt.GlobalColor.transparent)
        painter = QPainter(picture)
        try:
            self.paint(painter, QRect(QPoint(0, 0), size), mode, state)
        finally:
            painter.end()
        return picture

    def clone(self) -> QIconEngine:
        return _TintedEngine(self._name, self._role)


def set_role(widget: QWidget, role: str) -> None:
    """Give a widget its look from the stylesheet; may be called again to change it."""
    if widget.property("role") == role:
        return
    widget.setProperty("role", role)
    style = widget.style()
    style.unpolish(widget)
    style.polish(widget)


