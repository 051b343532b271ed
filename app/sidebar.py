"""The side bar: the pages in the order of the work, what is ready and what is missing, the engine."""

from dataclasses import dataclass
from typing import Literal

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QColor, QPainter, QPaintEvent
from PySide6.QtWidgets import QButtonGroup, QHBoxLayout, QPushButton, QSizePolicy, QToolButton, QVBoxLayout, QWidget

from app import machine, theme
from app.widgets import ElidedLabel, label, line, plain_tip

WIDTH = 184
Sign = Literal["none", "ready", "problem", "checking", "running"]
_SIGN_WORDS = {"none": "", "ready": "ready", "problem": "something is missing", "checking": "being looked at",
               "running": "a run goes on"}


@dataclass(frozen=True)
class PageEntry:
    """A page: its key, its name, its icon, and its place in the order of the work (0: beside it)."""

    key: str
    name: str
    icon: str
    number: int = 0


PAGES = (
    PageEntry("model", "Model", "cube", 1),
    PageEntry("data", "Data", "database", 2),
    PageEntry("method", "Method", "sliders-horizontal", 3),
    PageEntry("train", "Train", "chart-line", 4),
    PageEntry("runs", "Runs", "list-bullets"),
    PageEntry("chat", "Chat", "chats"),
)


class Sidebar(QWidget):
    """`chosen(key)` when a page is clicked, `problem_clicked(key)` when its `!` is."""

    chosen = Signal(str)
    problem_clicked = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        theme.set_role(self, "sidebar")
        self.setFixedWidth(WIDTH)
        self.buttons: dict[str, NavigationButton] = {}
        self._group = QButtonGroup(self)
        self.engine = EngineLine()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 20, 12, 16)
        layout.setSpacing(4)
        layout.addWidget(label("LoRA Workbench", "section"))
        layout.addSpacing(theme.CARD_GAP)
        for entry in PAGES:
            if entry.key == "runs":
                layout.addSpacing(theme.GRID)
                layout.addWidget(line())
                layout.addSpacing(theme.GRID)
            layout.addWidget(self._button(entry))
        layout.addStretch(1)
        layout.addWidget(self.engine)
        self.machine = ElidedLabel(machine.words(), "help")
        layout.addWidget(self.machine)

    def show_machine(self, accelerator: str) -> None:
        """Say what computes; "" for the processor."""
        self.machine.set_text(machine.words(accelerator))

    def _button(self, entry: PageEntry) -> "NavigationButton":
        made = NavigationButton(entry)
        made.clicked.connect(lambda: self.chosen.emit(entry.key))
        made.sign.clicked.connect(lambda: self.problem_clicked.emit(entry.key))
        self._group.addButton(made)
        self.buttons[entry.key] = made
        return made

    def mark(self, key: str) -> None:
        """Show which page is open."""
        self.buttons[key].setChecked(True)

    def set_sign(self, key: str, sign: Sign, tip: str = "") -> None:
        """Show the state of a page."""
        self.buttons[key].set_sign(sign, tip)


class NavigationButton(QPushButton):
    """A page of the side bar; the sign at its right end is a button of its own where it is a `!`."""

    def __init__(self, entry: PageEntry) -> None:
        text = f"{entry.number}   {entry.name}" if entry.number else entry.name
        super().__init__(text)
        self._name = entry.name
        self._state: Sign = "none"
        self.setCheckable(True)
        self.setIcon(theme.icon(entry.icon))
        self.setIconSize(QSize(18 + theme.ICON_GAP, 18))
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(entry.name)
        theme.set_role(self, "navigation")
        self.sign = _SignButton()
        inner = QHBoxLayout(self)
        inner.setContentsMargins(0, 0, 6, 0)
        inner.addStretch(1)
        inner.addWidget(self.sign)

    @property
    def state(self) -> Sign:
        """The sign that is shown."""
        return self._state

    def set_sign(self, sign: Sign, tip: str = "") -> None:
        """Show a check, a `!` that can be clicked, or nothing."""
        self._state = sign
        self.sign.set_sign(sign)
        words = tip or _SIGN_WORDS[sign]
        self.sign.setToolTip(plain_tip(words))
        self.sign.setAccessibleName(f"Go to the problem: {words}" if sign == "problem" else words)
        self.setAccessibleDescription(words)


class _SignButton(QToolButton):
    def __init__(self) -> None:
        super().__init__()
        self._sign: Sign = "none"
        self.setFixedSize(24, 24)
        self.setCursor(Qt.CursorShape.PointingHandCursor)

    def set_sign(self, sign: Sign) -> None:
        self._sign = sign
        problem = sign == "problem"
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus if problem else Qt.FocusPolicy.NoFocus)
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents, not problem)
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        colors = theme.colors()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        box = self.rect().adjusted(4, 4, -4, -4)
        if self._sign == "ready":
            theme.icon("check", "good_text").paint(painter, box)
        elif self._sign == "checking":
            theme.icon("dots-three", "dim_text").paint(painter, box)
        elif self._sign == "running":
            theme.icon("play", "accent_text").paint(painter, box)
        elif self._sign == "problem":
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(colors.danger if self.underMouse() or self.hasFocus() else colors.danger_text))
            painter.drawEllipse(box)
            painter.setPen(QColor(colors.surface))
            font = theme.font("section")
            painter.setFont(font)
            painter.drawText(box, Qt.AlignmentFlag.AlignCenter, "!")


class EngineLine(QWidget):
    """A dot and words: what the engine does. The dot is hollow while it starts, a cross when it crashed."""

    def __init__(self) -> None:
        super().__init__()
        self._mood: Literal["idle", "busy", "starting", "crashed"] = "starting"
        self._words = ElidedLabel("Engine starting…")
        self.dot = _Dot(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(theme.GRID)
        layout.addWidget(self.dot)
        layout.addWidget(self._words, 1)

    @property
    def mood(self) -> str:
        """What the dot shows."""
        return self._mood

    @property
    def text(self) -> str:
        """What the words say."""
        return self._words.full_text

    def show_state(self, mood: Literal["idle", "busy", "starting", "crashed"], text: str) -> None:
        """Show the engines' state."""
        self._mood = mood
        self._words.set_text(text)
        self.dot.update()


class _Dot(QWidget):
    def __init__(self, owner: EngineLine) -> None:
        super().__init__()
        self._owner = owner
        self.setFixedSize(12, 12)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        colors = theme.colors()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        mood = self._owner.mood
        tint = QColor({"idle": colors.good, "busy": colors.accent, "starting": colors.dim_text,
                       "crashed": colors.danger}[mood])
        box = self.rect().adjusted(2, 2, -2, -2)
        painter.setPen(tint)
        if mood == "crashed":
            painter.drawLine(box.topLeft(), box.bottomRight())
            painter.drawLine(box.topRight(), box.bottomLeft())
            return
        if mood != "starting":
            painter.setBrush(tint)
        painter.drawEllipse(box)
