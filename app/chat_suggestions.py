"""Example questions above the input of an empty chat, to be asked with one click."""

from PySide6.QtCore import Signal, Slot
from PySide6.QtWidgets import QPushButton, QVBoxLayout, QWidget

from app import theme
from app.chat_examples import Examples, examples_of, is_sample, sample_examples
from app.operations import Operations
from app.widgets import button, clear_layout, label, row
from core import events
from core.config import RunConfig
from core.errors import describe
from core.jobs import PreviewRows


class Suggestions(QWidget):
    """Questions from the rows of a run.

    Signals: `asked(question)`; `system(text)`: the system message that the rows begin with; `failed(sentence)`.
    """

    asked = Signal(str)
    system = Signal(str)
    failed = Signal(str)

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations
        self._wanted = False  # rows that come late are not shown in a conversation
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(theme.GRID // 2)
        self.clear()

    def clear(self) -> None:
        """Offer nothing."""
        self._wanted = False
        self._show(Examples())

    def offer(self, config: RunConfig | None) -> None:
        """Offer questions from the run's own rows; None: there is no run."""
        self.clear()
        self._wanted = True
        if config is None:
            return
        if is_sample(config):
            try:
                self._show(sample_examples())
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.failed.emit(describe(error).message)
        elif config.data.train:
            self._operations.work(PreviewRows(config, count=3), latest="chat examples").on(
                events.RowsPrepared, self._rows_came).on(events.Failed, self._no_rows).start()

    @Slot(object)
    def _rows_came(self, event: events.RowsPrepared) -> None:
        if self._wanted:
            self._show(examples_of([list(preview.messages) for preview in event.rows]))

    @Slot(object)
    def _no_rows(self, _failure: events.Failed) -> None:
        """The data may be gone by now: there are no examples then, and the chat works without."""

    def _show(self, examples: Examples) -> None:
        clear_layout(self._layout)
        if examples.system:
            self.system.emit(examples.system)
        if examples.questions:
            self._layout.addWidget(label("Rows to try", "help"))
        for question in examples.questions:
            self._layout.addLayout(row(self._chip(question), None))
        self.setVisible(bool(examples.questions))

    def _chip(self, question: str) -> QPushButton:
        shown = " ".join(question.split())
        made = button(shown if len(shown) <= 90 else shown[:89] + "…", lambda: self.asked.emit(question), role="chip",
                      tip=question)
        made.setAccessibleName(f"Ask: {shown}")
        return made
