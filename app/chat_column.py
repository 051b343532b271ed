"""One column of the chat: the conversation with one model, as bubbles of plain text."""

from PySide6.QtCore import Qt, QTimer, Slot
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFrame, QHBoxLayout, QScrollArea, QVBoxLayout, QWidget

from app import figures, theme
from app.bubble import Bubble
from app.widgets import Card, ElidedLabel, EmptyState, button, clear_layout, label, row

_ASIDE = 32  # pixels at least beside a bubble: shows who speaks


class ChatColumn(Card):
    """Questions and answers of one model. `conversation` is what the model is asked with."""

    def __init__(self, title: str, waiting: str) -> None:
        super().__init__()
        self.conversation: list[tuple[str, str]] = []
        self.answered: dict[int, Bubble] = {}  # by the number of the question
        self._turn = 0
        self._answer: Bubble | None = None
        self._state = label("", "help")
        self._bubbles = QVBoxLayout()
        self._bubbles.setContentsMargins(0, 0, theme.GRID, 0)
        self._bubbles.setSpacing(theme.GRID)
        self._bubbles.setAlignment(Qt.AlignmentFlag.AlignTop)  # questions stand side by side
        self.name = ElidedLabel("", "help", Qt.TextElideMode.ElideMiddle)
        self.body.addLayout(row(label(title, "section"), self.name))
        self.empty = EmptyState(waiting, icon="chats")
        self._area = self._build_area()
        self.body.addWidget(self.empty, 1)
        self.body.addWidget(self._area, 1)
        self._area.hide()
        self._pending = ""
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(40)
        self._timer.timeout.connect(self._flush)

    def _build_area(self) -> QScrollArea:
        content = QWidget()
        content.setLayout(self._bubbles)
        theme.set_role(content, "scrolled")
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(content)
        area.viewport().setAutoFillBackground(False)
        area.verticalScrollBar().rangeChanged.connect(self._range_changed)
        self._at_end = True
        area.verticalScrollBar().valueChanged.connect(self._scrolled)
        return area

    @property
    def answering(self) -> bool:
        """True while an answer is expected."""
        return self._answer is not None

    def ask(self, question: str, turn: int) -> None:
        """Show a question and wait for the answer; `turn` numbers it, the same in both columns."""
        self._turn = turn
        self.conversation.append(("user", question))
        self.empty.hide()
        self._area.show()
        self._at_end = True
        self._add(Bubble(question, mine=True), right=True)
        self._answer = Bubble()
        self._answer.hide()  # an empty bubble says nothing
        self._add(self._answer)
        self._state = label("Waiting…", "help")
        self._bubbles.addWidget(self._state)

    def tell(self, text: str) -> None:
        """Say under the question what the engine does before the first word."""
        if self._answer is not None and not self._answer.text:
            self._state.setText(text)

    def append(self, text: str) -> None:
        """Take a piece of the answer; shown within 40 ms."""
        if self._answer is not None:
            self._pending += text
            if not self._timer.isActive():
                self._timer.start()

    def end_answer(self, tokens: int, seconds: float, stopped: bool) -> None:
        """The answer is complete: write how long it took."""
        self._flush()
        if self._answer is None:
            return
        if stopped and not self._answer.text:
            self.fail("Stopped.")
            return
        answer, self._answer = self._answer, None
        answer.show()
        self.conversation.append(("assistant", answer.text))
        self.answered[self._turn] = answer
        speed = f" · {tokens / seconds:,.0f} tok/s" if seconds > 0 else ""
        ended = " · cut off" if stopped else ""
        count = f"{tokens:,} token" if tokens == 1 else f"{tokens:,} tokens"
        self._state.setText(f"{count} · {figures.span(seconds)}{speed}{ended}" if answer.text
                            else f"No words at all ({count}).")
        if answer.text:
            copy = button("Copy", lambda: QGuiApplication.clipboard().setText(answer.text), role="link", icon="copy",
                          tip="Copy this answer")
            self._replace_state(copy)

    def fail(self, message: str, hint: str = "") -> None:
        """The answer did not come: say why, and take the question back out of the conversation."""
        self._flush()
        if self._answer is None:
            return
        self._answer = None
        if self.conversation and self.conversation[-1][0] == "user":
            self.conversation.pop()
        self._state.setText(f"{message} {hint}".strip())
        self._state.setWordWrap(True)
        theme.set_role(self._state, "error")

    def stop_waiting(self) -> None:
        """The person stopped before the first word."""
        if self._answer is not None:
            self._flush()
            self.end_answer(0, 0.0, stopped=True) if self._answer.text else self.fail("Stopped.")

    def clear(self) -> None:
        """Begin a new conversation."""
        self.conversation.clear()
        self.answered.clear()
        self._answer, self._pending = None, ""
        clear_layout(self._bubbles)
        self._state = label("", "help")
        self._area.hide()
        self.empty.show()

    def remark(self, text: str) -> None:
        """Add some words to the line below the newest answer."""
        self._state.setText(f"{self._state.text()} · {text}")

    def answers(self) -> list[str]:
        """All complete answers so far."""
        return [text for role, text in self.conversation if role == "assistant"]

    def shown_text(self) -> str:
        """The text of the answer that is coming in."""
        return self._answer.text if self._answer else ""

    def state_text(self) -> str:
        """What stands below the newest answer."""
        return self._state.text()

    @Slot()
    def _flush(self) -> None:
        text, self._pending = self._pending, ""
        if self._answer is not None and text:
            self._answer.append(text)
            self._answer.show()
            self._state.setText("")

    def _add(self, bubble: Bubble, *, right: bool = False) -> None:
        holder = QHBoxLayout()
        holder.setContentsMargins(0, 0, 0, 0)
        if right:
            holder.addSpacing(_ASIDE)
            holder.addStretch(1)
        holder.addWidget(bubble)
        if not right:
            holder.addStretch(1)
            holder.addSpacing(_ASIDE)
        self._bubbles.addLayout(holder)

    def _replace_state(self, copy: QWidget) -> None:
        place = self._bubbles.indexOf(self._state)
        self._bubbles.removeWidget(self._state)
        self._bubbles.insertLayout(place, row(self._state, copy, None))

    @Slot(int, int)
    def _range_changed(self, _low: int, high: int) -> None:
        if self._at_end:
            self._area.verticalScrollBar().setValue(high)

    @Slot(int)
    def _scrolled(self, value: int) -> None:
        self._at_end = value >= self._area.verticalScrollBar().maximum() - 4
