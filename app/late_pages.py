"""Pages that are built when they are first needed: they bring the plotting library with them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtWidgets import QDialog, QWidget

from app.actions import Actions
from app.draft import Draft
from app.operations import Operations
from app.run_session import RunSession
from core.records import AdapterCard

if TYPE_CHECKING:  # for the types alone: importing them is what is put off
    from app.pages.chat import ChatPage
    from app.pages.runs import RunsPage
    from app.pages.train import TrainPage


def make_train(session: RunSession, actions: Actions) -> "TrainPage":
    """The Train page, listening to the run that goes on."""
    from app.pages.train import TrainPage  # noqa: PLC0415 -- imports pyqtgraph

    page = TrainPage()
    session.began.connect(page.begin)
    session.happened.connect(page.on_event)
    session.ended.connect(page.end_run)
    session.paused_changed.connect(page.set_paused)
    page.start_requested.connect(actions.start_training)
    page.resume_requested.connect(actions.resume_training)
    page.chat_requested.connect(actions.chat_with)
    page.export_requested.connect(actions.export)
    return page


def make_runs(session: RunSession, actions: Actions, others: Callable[[], list[Path]]) -> "RunsPage":
    """The Runs page."""
    from app.pages.runs import RunsPage  # noqa: PLC0415 -- imports pyqtgraph

    page = RunsPage(others=others)
    page.open_requested.connect(actions.show_run)
    page.start_requested.connect(lambda: actions.show_page("train"))
    page.resume_requested.connect(actions.resume_training)
    page.repeat_requested.connect(actions.repeat)
    page.chat_requested.connect(actions.chat_with)
    page.export_requested.connect(actions.export)
    page.elsewhere_requested.connect(actions.open_folder)
    page.renamed.connect(actions.run_moved)
    page.deleted.connect(actions.run_deleted)
    session.began.connect(lambda _run: page.refresh())
    session.ended.connect(page.refresh)
    return page


def make_chat(operations: Operations, draft: Draft, session: RunSession, actions: Actions) -> "ChatPage":
    """The Chat page."""
    from app.pages.chat import ChatPage  # noqa: PLC0415

    page = ChatPage(operations)
    page.train_requested.connect(lambda: actions.show_page("train"))
    page.set_base(draft.config.model.path)
    draft.config_changed.connect(lambda config: page.set_base(config.model.path))
    session.ended.connect(page.refresh_runs)
    return page


def make_export_wizard(operations: Operations, actions: Actions, run_dir: Path, parent: QWidget) -> QDialog:
    """The export wizard for a run."""
    from app.export_wizard import ExportWizard  # noqa: PLC0415

    wizard = ExportWizard(operations, run_dir, parent=parent)
    wizard.chat_requested.connect(actions.chat_with)
    return wizard


def make_import_dialog(operations: Operations, actions: Actions, path: Path, parent: QWidget) -> QDialog:
    """What an adapter made elsewhere is, and what can be done with it."""
    from app.import_dialog import ImportDialog  # noqa: PLC0415

    dialog = ImportDialog(operations, path, parent)
    dialog.chat_requested.connect(actions.chat_with_adapter)
    dialog.train_requested.connect(actions.train_from)
    dialog.export_requested.connect(actions.export_adapter)
    return dialog


def make_adapter_wizard(operations: Operations, actions: Actions, card: AdapterCard, base: str,
                        parent: QWidget) -> QDialog:
    """The export wizard for an adapter made elsewhere."""
    from app.export_wizard import ExportWizard  # noqa: PLC0415

    wizard = ExportWizard(operations, parent=parent)
    wizard.state.choose_elsewhere(card, base)
    wizard.chat_requested.connect(lambda path: actions.chat_with_adapter(path, base))
    return wizard
