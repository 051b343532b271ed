"""Base and tuned model side by side: one question to both, their answers as they come, and where these differ."""

from collections.abc import Callable

from PySide6.QtCore import Signal, Slot
from PySide6.QtWidgets import QHBoxLayout, QWidget

from app import theme
from app.chat_column import ChatColumn
from app.operations import Operation, Operations
from app.text_difference import are_alike, differing_spans, places
from app.widgets import Card, EmptyState
from core import events
from core.jobs import Generate
from core.words import plural

# a job from what was said in each column so far, by its name, and the seed of this turn
MakeJob = Callable[[dict[str, list[tuple[str, str]]], int], Generate]


class AnswerColumns(QWidget):
    """Asks the working engine through `operations`.

    Signals: `busy_changed(is_busy)`; `failed()`: the question was not answered; `train_requested()`: the person wants
    an adapter to train first.
    """

    busy_changed = Signal(bool)
    failed = Signal()
    train_requested = Signal()

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations
        self._operation: Operation | None = None
        self._turn = 0
        self._both = False
        self._marking = True
        self.base = ChatColumn("Base", "Ask something: the model as it was answers here.")
        self.tuned = ChatColumn("Tuned", "Ask something: the model as you trained it answers here.")
        self.no_adapter = EmptyState("Train an adapter first, then both models answer side by side.",
                                     "Go to Train", icon="chart-line")
        self.no_adapter.pressed.connect(self.train_requested)
        self._no_tuned = Card()
        self._no_tuned.body.addWidget(self.no_adapter)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(theme.CARD_GAP)
        for column in (self.base, self.tuned, self._no_tuned):
            layout.addWidget(column, 1)
            column.setMinimumWidth(240)

    def show_tuned(self, both: bool) -> None:
        """Let both models answer, or the base alone."""
        self._both = both
        self.tuned.setVisible(both)
        self._no_tuned.setVisible(not both)

    @property
    def busy(self) -> bool:
        """True while an answer is on its way."""
        return self._operation is not None

    # --- asking ----------------------------------------------------------------------------

    def ask(self, question: str, make_job: MakeJob) -> None:
        """Put a question to the models; not while they are busy."""
        self._turn += 1
        columns = self._columns()
        for column in columns.values():
            column.ask(question, self._turn)
        operation = self._operations.work(make_job(
            {name: column.conversation for name, column in columns.items()}, self._turn))
        operation.on(events.Progress, self._progress).on(events.TokenGenerated, self._token)
        operation.on(events.GenerationDone, self._done).on(events.Failed, self._failed)
        operation.cancelled.connect(self._cancelled)
        operation.ended.connect(self._ended)
        self._set_operation(operation)
        operation.start()

    def set_strengths(self, *strengths: float) -> None:
        """Of the adapters of the answer that is on its way, from its next token on."""
        if self._operation is not None:
            self._operation.control.set_strengths(*strengths)

    def stop(self) -> None:
        """End the answers; what was said stays."""
        if self._operation is not None:
            self._operation.cancel()

    def clear(self) -> None:
        """Begin a new conversation."""
        if self._operation is not None:
            self._operation.discard()
            self._set_operation(None)
        self.base.clear()
        self.tuned.clear()

    def _columns(self) -> dict[str, ChatColumn]:
        return {"base": self.base, "tuned": self.tuned} if self._both else {"base": self.base}

    def _column(self, name: str) -> ChatColumn:
        return self.tuned if name == "tuned" else self.base

    def _set_operation(self, operation: Operation | None) -> None:
        self._operation = operation
        self.busy_changed.emit(self.busy)

    # --- what comes back -------------------------------------------------------------------

    @Slot(object)
    def _progress(self, event: events.Progress) -> None:
        for column in self._columns().values():
            column.tell(f"{event.stage}…")

    @Slot(object)
    def _token(self, event: events.TokenGenerated) -> None:
        self._column(event.column).append(event.text)

    @Slot(object)
    def _done(self, event: events.GenerationDone) -> None:
        self._column(event.column).end_answer(event.tokens, event.seconds, event.stopped)
        # once both have answered, say below the tuned answer whether it differs, and mark where
        if self._turn in self.base.answered and self._turn in self.tuned.answered:
            self.tuned.remark(self._mark(self._turn))

    @Slot(object)
    def _failed(self, failure: events.Failed) -> None:
        for column in self._columns().values():
            column.fail(failure.message, failure.hint)
        self.failed.emit()

    @Slot()
    def _cancelled(self) -> None:
        if self.sender() is self._operation:
            for column in self._columns().values():
                column.stop_waiting()

    @Slot()
    def _ended(self) -> None:
        if self.sender() is self._operation:
            self._set_operation(None)

    # --- where they differ -----------------------------------------------------------------

    @Slot(bool)
    def mark_differences(self, marking: bool) -> None:
        """Underline where two answers differ, or do not."""
        self._marking = marking
        for turn in self.base.answered.keys() & self.tuned.answered.keys():
            self._mark(turn)

    def _mark(self, turn: int) -> str:
        """Mark where two answers differ, if that is wanted and tells something; the same in words."""
        base, tuned = self.base.answered[turn], self.tuned.answered[turn]
        spans = differing_spans(base.text, tuned.text)
        alike, number = are_alike(base.text, tuned.text, spans), places(spans)
        shown = spans if self._marking and alike else ([], [])
        base.mark(shown[0])
        tuned.mark(shown[1])
        if not alike:
            return "quite another answer than Base"
        return f"differs from Base in {plural(number, 'place')}" if number else "the same as Base"
