"""The export wizard: What, Where to, Details, Work, Receipt."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PySide6.QtCore import QSize, Qt, QTimer, Signal, Slot
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import QWidget, QWizard

from app import theme
from app.export_choice import ExportChoice, ExportFacts, Target
from app.export_pages import DetailsPage, WhatPage, WherePage
from app.export_work import ReceiptPage, WorkPage
from app.operations import Operations
from app.run_list import runs_with_adapters
from core import events
from core.errors import CoreError, describe
from core.jobs import InspectModel
from core.paths import runs_root
from core.runs.folder import RunFolder


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
        self.operations = operations
        self.choice = ExportChoice(run_dir or Path(), checkpoint)
        self.facts: ExportFacts | None = None
        self.card_problem = ""
        self.closing = False
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
        self.currentIdChanged.connect(lambda _page: QTimer.singleShot(0, self._show_back))
        self.what, self.where, self.details = WhatPage(), WherePage(), DetailsPage()
        self.work, self.receipt_page = WorkPage(), ReceiptPage()
        for page in (self.what, self.where, self.details, self.work, self.receipt_page):
            self.addPage(page)
        self._fill_runs(root, run_dir, checkpoint)
        self.resize(self.sizeHint())

    def _fill_runs(self, root: Callable[[], Path], run_dir: Path | None, checkpoint: str) -> None:
        try:
            self.what.picker.set_runs(runs_with_adapters(root()))
        except OSError as error:
            self.card_problem = describe(error).message
        if run_dir is not None:
            self.what.picker.choose(run_dir, checkpoint)

    def choose_run(self, run_dir: Path, checkpoint: str, adapter: Path) -> str:
        """Take a run as what is exported. Returns what is wrong with it, "" if nothing."""
        self.choice = replace(self.choice, run_dir=run_dir, checkpoint=checkpoint)
        self.facts = None
        try:
            config = RunFolder(run_dir).config()
            weights = (adapter / "adapter_model.safetensors").stat().st_size
        except CoreError as error:
            return f"{error.message} {error.hint}".strip()
        except OSError as error:
            return describe(error).message
        self.facts = ExportFacts(config, weights)
        self._inspect(config.model.path)
        return ""

    def choose_target(self, target: Target) -> None:
        """Adapter or merged; the number type goes back to the natural one."""
        if target != self.choice.to:
            self.choice = replace(self.choice, to=target, dtype="base")

    @Slot()
    def _show_back(self) -> None:
        self.show_busy(self.work.busy)

    def show_busy(self, busy: bool) -> None:
        """While the engine works there is no way back."""
        self.button(QWizard.WizardButton.BackButton).setEnabled(not busy)

    def _inspect(self, model: str) -> None:
        """Ask for the base model's size: it tells what a merged model takes."""
        self.card_problem = ""
        operation = self.operations.work(InspectModel(model), latest="export inspect")
        operation.on(events.ModelInspected, self._inspected_model).on(events.Failed, self._not_inspected).start()

    @Slot(object)
    def _inspected_model(self, event: events.ModelInspected) -> None:
        if self.facts is not None:
            self.facts = replace(self.facts, card=event.card)
            self.where.show_costs()

    @Slot(object)
    def _not_inspected(self, failure: events.Failed) -> None:
        self.card_problem = failure.message
        self.where.show_costs()

    def reject(self) -> None:
        """Cancel: first the work, which leaves nothing behind; the wizard closes when nothing runs."""
        if self.work.busy:
            self.work.cancel()
            return
        super().reject()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 -- Qt's name
        """Closing the window during the work cancels it and closes afterwards."""
        if self.work.busy:
            self.closing = True
            self.work.cancel()
            event.ignore()
            return
        super().closeEvent(event)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Room for the receipt's texts."""
        return QSize(760, 600)
