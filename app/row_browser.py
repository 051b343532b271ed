"""Looks through the rows of a dataset: one row as conversation and as tokens, a navigator, a search."""

from collections.abc import Callable

from PySide6.QtCore import QLocale, Qt, QTimer
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QSpinBox, QSplitter, QStackedLayout, QWidget

from app import theme
from app.draft import Draft
from app.operations import Operations
from app.row_views import BubbleView, TokenLegend, TokenView
from app.widgets import Card, EmptyState, button, column, label, spin_margin
from core import words
from core.events import Failed, RowsPrepared
from core.jobs import PreviewRows
from core.records import RowPreview

SEARCH_DELAY_MS = 300


class RowBrowser(Card):
    """Asks the engine for one row at a time; call `reload` when the data or its settings have changed."""

    def __init__(self, draft: Draft, operations: Operations) -> None:
        super().__init__()
        self._draft = draft
        self._operations = operations
        self._total = 0
        self.number = QSpinBox()
        self.number.setLocale(QLocale(QLocale.Language.English, QLocale.Country.UnitedStates))
        self.number.setGroupSeparatorShown(True)
        self.number.setFixedWidth(72)
        spin_margin(self.number)
        self.number.setAccessibleName("Row")
        self.number.setRange(1, 1)
        self.number.setKeyboardTracking(False)
        self.number.valueChanged.connect(lambda _value: self._ask())
        self.of = label("of 0", "help")
        self.previous = self._arrow("caret-left", "Previous row", self.number.stepDown)
        self.next = self._arrow("caret-right", "Next row", self.number.stepUp)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search rows")
        self.search.setAccessibleName("Search rows")
        self.search.setClearButtonEnabled(True)
        self.search.setMaximumWidth(240)
        self.length = label("", "help")
        self.bubbles = BubbleView()
        self.tokens = TokenView()
        self.empty = EmptyState("")
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SEARCH_DELAY_MS)
        self._timer.timeout.connect(self.reload)
        self.search.textChanged.connect(lambda _text: self._timer.start())
        self._build()
        self.show_words("The rows are shown as soon as a model and data are chosen.")

    def _arrow(self, icon: str, name: str, slot: Callable[[], None]) -> QWidget:
        made = button("", slot, icon=icon, tip=name)
        made.setAccessibleName(name)
        made.setFixedWidth(36)
        return made

    def _build(self) -> None:
        bar = QHBoxLayout()
        bar.setSpacing(theme.GRID)
        for widget in (label("Row", "strong"), self.previous, self.number, self.of, self.next):
            bar.addWidget(widget)
        bar.addSpacing(theme.GRID)
        bar.addWidget(self.length)
        bar.addStretch(1)
        bar.addWidget(self.search)
        right = QWidget()
        inside = column(TokenLegend(), self.tokens)
        inside.setContentsMargins(theme.GRID, 0, 0, 0)
        right.setLayout(inside)
        splitter = QSplitter(Qt.Orientation.Horizontal)
        splitter.addWidget(self.bubbles)
        splitter.addWidget(right)
        splitter.setChildrenCollapsible(False)
        splitter.setHandleWidth(theme.GRID)
        splitter.setSizes([1000, 1000])
        inner = QWidget()
        self._stack = QStackedLayout(inner)
        self._stack.addWidget(splitter)
        self._stack.addWidget(self.empty)
        self.body.addLayout(bar)
        self.body.addWidget(inner, 1)

    def reload(self) -> None:
        """Ask for the first row again."""
        blocked = self.number.blockSignals(True)
        self.number.setValue(1)
        self.number.blockSignals(blocked)
        self._ask()

    def refresh(self) -> None:
        """Ask for the same row again; there may be more of them now."""
        self._ask()

    def show_words(self, text: str) -> None:
        """Instead of a row, say something."""
        self._total = 0
        self.empty.sentence.setText(text)
        self._stack.setCurrentIndex(1)
        self._show_place()

    def _ask(self) -> None:
        job = PreviewRows(self._draft.config, self.number.value() - 1, 1, self.search.text().strip())
        (self._operations.work(job, latest="preview")
         .on(RowsPrepared, self._prepared)
         .on(Failed, lambda failed: self.show_words(f"{failed.message} {failed.hint}".strip())).start())

    def _prepared(self, event: RowsPrepared) -> None:
        if not event.rows:
            self.show_words("No row has this text." if self.search.text().strip() else "There are no rows.")
            return
        self._total = event.total_rows
        self._show_row(event.rows[0])
        self._show_place()

    def _show_row(self, preview: RowPreview) -> None:
        self._stack.setCurrentIndex(0)
        self.bubbles.show_messages(preview.messages)
        self.tokens.show_tokens(preview.tokens)
        trained = sum(token.trained for token in preview.tokens)
        cut = ", cut at the limit" if preview.cut else ""
        self.length.setText(f"{words.plural(len(preview.tokens), 'token')}, {trained:,} trained{cut}")

    def _show_place(self) -> None:
        blocked = self.number.blockSignals(True)
        self.number.setRange(1, max(self._total, 1))
        self.number.blockSignals(blocked)
        self.of.setText(f"of {self._total:,}")
        self.number.setEnabled(self._total > 0)
        self.previous.setEnabled(self.number.value() > 1)
        self.next.setEnabled(self.number.value() < self._total)
        if not self._total:
            self.length.setText("")
