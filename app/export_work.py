"""The last two pages of the export wizard: the work and the receipt."""

import time

from PySide6.QtCore import QUrl, Signal, Slot
from PySide6.QtGui import QDesktopServices, QGuiApplication
from PySide6.QtWidgets import QProgressBar, QVBoxLayout

from app import figures, theme
from app.errors import report
from app.export_pages import ExportPage
from app.export_state import ExportState
from app.operations import Operation
from app.receipt_view import ReceiptView
from app.widgets import ProblemLine, button, label, row
from core import events


class WorkPage(ExportPage):
    """4: the engine works; Cancel leaves nothing behind.

    Signals: `busy_changed(bool)` when the work has begun or ended.
    """

    busy_changed = Signal(bool)

    def __init__(self, state: ExportState) -> None:
        super().__init__(state, "4 of 5 · Work", "The files are written, read again and compared.")
        self.stage = label("", "strong")
        self.left = label("", "help")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName("Progress of the export")
        self.problem = ProblemLine()
        self.report_button = button("Copy report", self._copy_report, icon="copy")
        self.retry_button = button("Try again", self._start, icon="arrow-clockwise")
        self._failure: events.Failed | None = None
        self._operation: Operation | None = None
        self._stage_began = 0.0
        layout = QVBoxLayout(self)
        layout.setSpacing(theme.GRID)
        layout.addLayout(row(self.stage, None, self.left))
        layout.addWidget(self.bar)
        layout.addSpacing(theme.GRID)
        layout.addWidget(self.problem)
        layout.addLayout(row(self.retry_button, self.report_button, None))
        layout.addStretch(1)

    @property
    def busy(self) -> bool:
        """True while the engine works on it."""
        return self._operation is not None

    def initializePage(self) -> None:  # noqa: N802 -- Qt's name
        """Begin."""
        self._start()

    def _start(self) -> None:
        self.state.receipt, self._failure = None, None
        self.problem.set_problem("")
        self.report_button.hide()
        self.retry_button.hide()
        self._show("Waiting for the engine…", 0, 0)
        operation = self.state.operations.work(self.state.choice.job())
        operation.on(events.Progress, self._progress).on(events.ReceiptReady, self._receipt_came)
        operation.on(events.Failed, self._failed)
        operation.finished.connect(self._finished)
        operation.cancelled.connect(self._cancelled)
        operation.ended.connect(self._ended)
        self._operation = operation
        self.busy_changed.emit(True)
        operation.start()
        self.completeChanged.emit()

    def cancel(self) -> None:
        """Ask the engine to stop; `cancelled` follows."""
        if self._operation is not None:
            self.stage.setText("Cancelling…")
            self._operation.cancel()

    @Slot(object)
    def _progress(self, event: events.Progress) -> None:
        if self.stage.text() == "Cancelling…":
            return
        if not self.stage.text().startswith(event.stage):
            self._stage_began = time.monotonic()
        count = figures.amount_done(event.done, event.total, event.unit)
        self._show(f"{event.stage}: {count}" if count else f"{event.stage}…", event.done, event.total)

    def _show(self, stage: str, done: int, total: int) -> None:
        self.stage.setText(stage)
        self.bar.setRange(0, total)  # 0 to 0: busy, the end is not known
        self.bar.setValue(done)
        spent = time.monotonic() - self._stage_began
        known = 0 < done < total and spent > 1
        self.left.setText(f"{figures.time_left(spent * (total - done) / done)} left in this step" if known else "")

    @Slot(object)
    def _receipt_came(self, event: events.ReceiptReady) -> None:
        self.state.receipt = event.receipt

    @Slot(object)
    def _failed(self, failure: events.Failed) -> None:
        self.state.receipt, self._failure = None, failure
        self._stop_bar("Not exported")
        self.problem.set_problem(f"{failure.message} {failure.hint}".strip())
        self.report_button.setText("Copy report")
        self.report_button.show()
        self.retry_button.show()

    @Slot()
    def _cancelled(self) -> None:
        self._stop_bar("Cancelled. Nothing was left behind.")
        self.retry_button.show()

    @Slot(object)
    def _finished(self, _result: events.Result) -> None:
        if self.state.receipt is None:  # never shown as a success: nothing proves it
            self._failed(events.Failed("The export was written, but the engine sent no receipt for it.",
                                       "Try again, or check the files yourself."))

    @Slot()
    def _ended(self) -> None:
        self._operation = None
        self.completeChanged.emit()
        self.busy_changed.emit(False)

    def _stop_bar(self, words: str) -> None:
        self.stage.setText(words)
        self.left.setText("")
        self.bar.setRange(0, 1)
        self.bar.setValue(0)

    def _copy_report(self) -> None:
        if self._failure is not None:
            QGuiApplication.clipboard().setText(report(self._failure))
            self.report_button.setText("Copied")

    def isComplete(self) -> bool:  # noqa: N802
        """There is a receipt to show."""
        return not self.busy and self.state.receipt is not None


class ReceiptPage(ExportPage):
    """5: the proof.

    Signals: `chat_requested()`: try the run in Chat.
    """

    chat_requested = Signal()

    def __init__(self, state: ExportState) -> None:
        super().__init__(state, "5 of 5 · Receipt", "What was read back from the disk, compared with base + adapter.")
        self.view = ReceiptView()
        self.open_button = button("Open folder", self._open, icon="folder-open")
        self.copy_button = button("Copy command", self._copy, icon="copy",
                                  tip="The command line that makes the same export")
        self.chat_button = button("Try in Chat", self.chat_requested.emit, icon="chats")
        layout = QVBoxLayout(self)
        layout.setSpacing(12)
        layout.addWidget(self.view, 1)
        layout.addLayout(row(self.open_button, self.copy_button, self.chat_button, None))
        self.setFinalPage(True)

    def initializePage(self) -> None:  # noqa: N802
        """Show the receipt that the work brought."""
        receipt = self.state.receipt
        if receipt is not None:
            self.view.show_receipt(receipt)
        self.copy_button.setText("Copy command")

    def _open(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.state.choice.out)))

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self.state.choice.command())
        self.copy_button.setText("Copied")
