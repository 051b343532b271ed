"""The log under the plots: what the run said and when, bounded, as plain text that can be copied."""

from collections.abc import Sequence

from PySide6.QtCore import Slot
from PySide6.QtGui import QColor, QGuiApplication, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import QPlainTextEdit, QTabWidget, QVBoxLayout, QWidget

from app import theme
from app.run_record import LogLine
from app.widgets import button

MOST_LINES = 5000
_MARKS = {"note": "", "warning": "Warning: ", "error": "Error: "}


class RunLog(QWidget):
    """Shows the lines of a record; only new ones are added."""

    def __init__(self) -> None:
        super().__init__()
        self.text = QPlainTextEdit()
        self.text.setReadOnly(True)
        self.text.setMaximumBlockCount(MOST_LINES)
        self.text.setFont(theme.font("mono"))
        self.text.setAccessibleName("Log of the run")
        self.text.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.copy_button = button("Copy the log", self.copy, icon="copy", role="link")
        self._shown = 0
        self._at_end = True
        bar = self.text.verticalScrollBar()
        bar.valueChanged.connect(self._scrolled)
        bar.rangeChanged.connect(self._range_changed)  # also when it is shown first, or made smaller
        tabs = QTabWidget()
        tabs.setDocumentMode(True)
        tabs.tabBar().setDrawBase(False)
        tabs.addTab(self.text, "Log")
        tabs.setCornerWidget(self.copy_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(tabs)
        self.setMinimumHeight(84)

    def show_lines(self, lines: Sequence[LogLine], *, replace: bool = False) -> None:
        """Append what is new in `lines`; `replace` begins with an empty log."""
        if replace:
            self.text.clear()
            self._shown = 0
        fresh = lines[max(self._shown, len(lines) - MOST_LINES):]
        self._shown = len(lines)
        self._at_end = self._at_end or replace
        self._append([(f"{one.time:>8}  {_MARKS[one.kind]}{one.text}", one.kind) for one in fresh])

    @Slot(int)
    def _scrolled(self, value: int) -> None:
        self._at_end = value >= self.text.verticalScrollBar().maximum() - 2

    @Slot(int, int)
    def _range_changed(self, _low: int, high: int) -> None:
        if self._at_end:
            self.text.verticalScrollBar().setValue(high)

    def _append(self, lines: Sequence[tuple[str, str]]) -> None:
        if not lines:
            return
        colors = theme.colors()
        styles = {"note": QTextCharFormat()}
        for kind, color in (("warning", colors.warning_text), ("error", colors.danger_text)):
            styles[kind] = QTextCharFormat()
            styles[kind].setForeground(QColor(color))
        cursor = QTextCursor(self.text.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.beginEditBlock()  # one layout for all lines
        first = self.text.document().isEmpty()
        for text, kind in lines:
            if not first:
                cursor.insertBlock()
            first = False
            cursor.insertText(text.replace("\n", " "), styles[kind])
        cursor.endEditBlock()

    def copy(self) -> None:
        """Put the whole log on the clipboard."""
        QGuiApplication.clipboard().setText(self.text.toPlainText())
