"""Small parts that all pages are made of. All text is plain text: nothing foreign is ever read as markup."""

from collections.abc import Callable
from typing import Literal

from PySide6.QtCore import QEvent, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import (
    QAbstractSpinBox,
    QBoxLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLayout,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from app import theme

LabelRole = Literal["body", "title", "section", "strong", "help", "error", "warning", "good"]
Mood = Literal["good", "warning", "danger", "neutral"]
FIELD_HEIGHT = 30
MOOD_ICONS = {"good": "check-circle", "warning": "warning", "danger": "x-circle", "neutral": "info"}


def label(text: str = "", role: LabelRole = "body", *, wrap: bool = False, selectable: bool = False) -> QLabel:
    """A label of plain text with one of the sheet's looks."""
    made = QLabel()
    made.setTextFormat(Qt.TextFormat.PlainText)
    made.setText(text)
    made.setWordWrap(wrap)
    theme.set_role(made, role)
    if selectable:
        made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse
                                     | Qt.TextInteractionFlag.TextSelectableByKeyboard)
    return made


def plain_tip(text: str) -> str:
    """Text for a tool tip or What's This, which Qt would read as markup: escaped, with line breaks kept."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "<br>")
    return f"<qt>{escaped}</qt>" if text else ""


def button(text: str, slot: Callable[[], object] | None = None, *, role: str = "", icon: str = "",
           tip: str = "") -> QPushButton:
    """A push button. Roles: "" ordinary, "primary" (the one filled button), "danger", "link"."""
    made = QPushButton(text.replace("&", "&&"))
    made.setAccessibleName(text)
    if role:
        theme.set_role(made, role)
    if icon:
        tint = {"primary": "on_accent", "danger": "danger_text", "link": "accent_text"}.get(role, "text")
        made.setIcon(theme.icon(icon, tint))
        made.setIconSize(QSize(theme.ICON_SIZE + (theme.ICON_GAP if text else 0), theme.ICON_SIZE))
    if tip:
        made.setToolTip(plain_tip(tip))
    if slot is not None:
        made.clicked.connect(lambda _checked: slot())
    return made


def spin_margin(box: QAbstractSpinBox) -> None:
    """Make a spin box look like the other fields: the style sheet can not reach its number."""
    box.lineEdit().setTextMargins(7, 0, 7, 0)
    box.setFixedHeight(FIELD_HEIGHT)


def row(*items: QWidget | QLayout | int | None, spacing: int = theme.GRID) -> QHBoxLayout:
    """Widgets side by side; None is a stretch, a number is that many pixels of space."""
    made = QHBoxLayout()
    _fill(made, items, spacing)
    return made


def column(*items: QWidget | QLayout | int | None, spacing: int = theme.GRID) -> QVBoxLayout:
    """Widgets below each other; None is a stretch, a number is that many pixels of space."""
    made = QVBoxLayout()
    _fill(made, items, spacing)
    return made


def _fill(layout: QBoxLayout, items: tuple[QWidget | QLayout | int | None, ...], spacing: int) -> None:
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(spacing)
    for item in items:
        if item is None:
            layout.addStretch(1)
        elif isinstance(item, int):
            layout.addSpacing(item)
        elif isinstance(item, QWidget):
            layout.addWidget(item)
        else:
            layout.addLayout(item)


def clear_layout(layout: QLayout) -> None:
    """Take everything out of a layout and delete it."""
    while (item := layout.takeAt(0)) is not None:
        widget, inner = item.widget(), item.layout()
        if widget is not None:
            widget.setParent(None)
            widget.deleteLater()
        elif inner is not None:
            clear_layout(inner)


def line() -> QFrame:
    """A thin horizontal line."""
    made = QFrame()
    made.setFixedHeight(1)
    theme.set_role(made, "line")
    return made


class Card(QFrame):
    """A framed surface with an optional heading; put things into `body`."""

    def __init__(self, title: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        theme.set_role(self, "card")
        self.body = QVBoxLayout(self)
        margin = theme.CARD_MARGIN
        self.body.setContentsMargins(margin, margin, margin, margin)
        self.body.setSpacing(theme.GRID)
        self.heading = QHBoxLayout()
        if title:
            self.heading.addWidget(label(title, "section"))
            self.heading.addStretch(1)
            self.body.addLayout(self.heading)
            self.setAccessibleName(title)


class EmptyState(QWidget):
    """What to do where there is nothing yet: one sentence and a button; a second one only as a link below it.

    Signals: `pressed()` of the button, `link_pressed()` of the link.
    """

    pressed = Signal()
    link_pressed = Signal()

    def __init__(self, sentence: str, button_text: str = "", *, icon: str = "", primary: bool = False,
                 link: str = "", link_tip: str = "") -> None:
        super().__init__()
        self.sentence = label(sentence, "help", wrap=True)
        self.sentence.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.sentence.setMaximumWidth(420)
        layout = QVBoxLayout(self)
        layout.setSpacing(2 * theme.GRID)
        layout.addStretch(1)
        if icon:
            picture = IconLabel(icon, 32, "dim_text")
            layout.addWidget(picture, 0, Qt.AlignmentFlag.AlignHCenter)
        middle = row(None, self.sentence, None)  # not by alignment: that would cut off the second line
        middle.setStretch(1, 4)
        layout.addLayout(middle)
        self.button = button(button_text, self.pressed.emit, role="primary" if primary else "")
        self.button.setVisible(bool(button_text))
        layout.addWidget(self.button, 0, Qt.AlignmentFlag.AlignHCenter)
        self.link = button(link, self.link_pressed.emit, role="link", tip=link_tip)
        self.link.setVisible(bool(link))
        layout.addWidget(self.link, 0, Qt.AlignmentFlag.AlignHCenter)
        layout.addStretch(1)


class IconLabel(QWidget):
    """An icon without function, tinted by a role of the colours."""

    def __init__(self, name: str, pixels: int = theme.ICON_SIZE, role: str = "text") -> None:
        super().__init__()
        self._name, self._role = name, role
        self.setFixedSize(pixels, pixels)

    def set_icon(self, name: str, role: str = "text") -> None:
        """Show another icon or tint."""
        self._name, self._role = name, role
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Paint the icon in the present colours."""
        if self._name:
            theme.icon(self._name, self._role).paint(QPainter(self), self.rect())


class Pill(QFrame):
    """A small rounded sign: a shape that tells its mood without colour, and a few words."""

    def __init__(self, text: str, mood: Mood = "neutral", tip: str = "") -> None:
        super().__init__()
        self._icon = IconLabel(MOOD_ICONS[mood], 14)
        self._label = label()
        self._mood: Mood = mood
        layout = row(self._icon, self._label, spacing=6)
        layout.setContentsMargins(8, 3, 10, 3)
        self.setLayout(layout)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        self.set(text, mood, tip)

    @property
    def text(self) -> str:
        """The words on it."""
        return self._label.text()

    def set(self, text: str, mood: Mood = "neutral", tip: str = "") -> None:
        """Change words and mood."""
        self._mood = mood
        self._label.setText(text)
        self._icon.set_icon(MOOD_ICONS[mood], "dim_text" if mood == "neutral" else f"{mood}_text")
        self.setToolTip(plain_tip(tip))
        self.setAccessibleName(text)
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """A rounded outline in the mood's colour."""
        colors = theme.colors()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        tint = QColor(colors.border if self._mood == "neutral" else getattr(colors, self._mood))
        painter.setPen(tint)
        tint = QColor(tint)
        tint.setAlphaF(0.0 if self._mood == "neutral" else 0.10)
        painter.setBrush(tint)
        box = QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5)
        painter.drawRoundedRect(box, box.height() / 2, box.height() / 2)


class ElidedLabel(QLabel):
    """One line of plain text that ends in … where the space does; the tool tip has all of it."""

    def __init__(self, text: str = "", role: LabelRole = "body",
                 mode: Qt.TextElideMode = Qt.TextElideMode.ElideRight) -> None:
        super().__init__()
        self._full = ""
        self._mode = mode
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.setMinimumWidth(24)
        theme.set_role(self, role)
        self.set_text(text)

    @property
    def full_text(self) -> str:
        """The text, not shortened."""
        return self._full

    def set_text(self, text: str) -> None:
        """Show another text."""
        self._full = text.replace("\n", " ")
        self.setAccessibleName(self._full)
        self._shorten()

    def sizeHint(self) -> QSize:  # noqa: N802
        """The width of the whole text."""
        return QSize(self.fontMetrics().horizontalAdvance(self._full) + 2, super().sizeHint().height())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Almost nothing: it may be shortened."""
        return QSize(24, super().minimumSizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Shorten anew."""
        super().resizeEvent(event)
        self._shorten()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        """Shorten anew when the font changes."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._shorten()

    def _shorten(self) -> None:
        shown = self.fontMetrics().elidedText(self._full, self._mode, max(self.width(), 24))
        if shown != self.text():
            self.setText(shown)
        self.setToolTip(plain_tip(self._full) if shown != self._full else "")


class ProblemLine(QWidget):
    """The words under a field that is wrong (or unwise), with a sign; takes no space while all is well."""

    def __init__(self) -> None:
        super().__init__()
        self._icon = IconLabel("", 14)
        self._label = label("", "error", wrap=True)
        layout = row(self._icon, self._label, spacing=6)
        layout.setAlignment(self._icon, Qt.AlignmentFlag.AlignTop)
        layout.setStretch(1, 1)
        self.setLayout(layout)
        self.setVisible(False)

    @property
    def text(self) -> str:
        """What is said now; "" if nothing."""
        return self._label.text()

    def set_problem(self, text: str, mood: Literal["danger", "warning"] = "danger") -> None:
        """Say `text`; "" hides the line."""
        self._label.setText(text)
        theme.set_role(self._label, "error" if mood == "danger" else "warning")
        self._icon.set_icon(MOOD_ICONS[mood], f"{mood}_text")
        self.setAccessibleName(text)
        self.setVisible(bool(text))
