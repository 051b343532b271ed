"""The export wizard: from a run to an adapter or a merged model, with a receipt."""

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QSize, Qt, QTimer, Signal, Slot
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import QWidget, QWizard

from app import theme
from app.export_choice import ExportChoice
from app.export_pages import DetailsPage, WhatPage, WherePage
from app.export_state import ExportState
from app.export_work import ReceiptPage, WorkPage
from app.operations import Operations
from app.run_list import runs_with_adapters
from core.errors import describe
from core.paths import runs_root


class ExportWizard(QWizard):
    """Leads from a run to files with a receipt.

    Args:
        operations: runs the jobs.
        run_dir: the run that is chosen at first.
        root: gives the folder of the runs.

    Signals: `chat_requested(Path)`: try the exported run in Chat.
    """

    chat_requested = Signal(object)

    def __init__(self, operations: Operations, run_dir: Path | None = None, checkpoint: str = "",
                 root: Callable[[], Path] = runs_root, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.state = ExportState(operations, ExportChoice(run_dir or Path(), checkpoint), self)
        self._closing = False
        self._set_look()
        self.currentIdChanged.connect(lambda _page: QTimer.singleShot(0, self, self._show_back))
        self.what, self.where, self.details = WhatPage(self.state), WherePage(self.state), DetailsPage(self.state)
        self.work, self.receipt_page = WorkPage(self.state), ReceiptPage(self.state)
        for page in (self.what, self.where, self.details, self.work, self.receipt_page):
            self.addPage(page)
        self.work.busy_changed.connect(self._busy_changed)
        self.receipt_page.chat_requested.connect(self._try_in_chat)
        self._fill_runs(root, run_dir, checkpoint)
        self.resize(self.sizeHint())

    def _set_look(self) -> None:
        self.setWindowTitle("Export")
        self.setWizardStyle(QWizard.WizardStyle.ModernStyle)
        self.setTitleFormat(Qt.TextFormat.PlainText)
        self.setSubTitleFormat(Qt.TextFormat.PlainText)
        self.setOption(QWizard.WizardOption.NoBackButtonOnStartPage)
        self.setOption(QWizard.WizardOption.NoBackButtonOnLastPage)
        self.setOption(QWizard.WizardOption.NoCancelButtonOnLastPage)
        for kind, words, role in ((QWizard.WizardButton.BackButton, "Back", ""),
                                  (QWizard.WizardButton.NextButton, "Next", "primary"),
                                  (QWizard.WizardButton.FinishButton, "Done", "primary")):
            self.setButtonText(kind, words)
            theme.set_role(self.button(kind), role)

    def _fill_runs(self, root: Callable[[], Path], run_dir: Path | None, checkpoint: str) -> None:
        try:
            self.what.picker.set_runs(runs_with_adapters(root()))
        except OSError as error:
            self.what.show_problem(describe(error).message)
            return
        if run_dir is not None:
            self.what.picker.choose(run_dir, checkpoint)

    @Slot(bool)
    def _busy_changed(self, busy: bool) -> None:
        """The work has begun or ended: go on to the receipt, or close if that was asked meanwhile."""
        self._show_back()
        if busy:
            return
        if self._closing:
            self.reject()
        elif self.state.receipt is not None:
            self.next()

    @Slot()
    def _show_back(self) -> None:
        """While the engine works there is no way back."""
        self.button(QWizard.WizardButton.BackButton).setEnabled(not self.work.busy)

    @Slot()
    def _try_in_chat(self) -> None:
        self.chat_requested.emit(self.state.choice.run_dir)
        self.accept()

    def reject(self) -> None:
        """Cancel: first the work, which leaves nothing behind; the wizard closes when nothing runs."""
        if self.work.busy:
            self.work.cancel()
            return
        super().reject()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 -- Qt's name
        """Closing the window during the work cancels it and closes afterwards."""
        if self.work.busy:
            self._closing = True
            self.work.cancel()
            event.ignore()
            return
        super().closeEvent(event)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Room for the receipt's texts."""
        return QSize(760, 600)
