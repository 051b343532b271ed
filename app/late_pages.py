"""Pages that are built when they are first needed: they bring the plotting library with them."""

from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtWidgets import QWidget

if TYPE_CHECKING:
    from app.pages.chat import ChatPage
    from app.pages.runs import RunsPage
    from app.pages.train import TrainPage
    from app.window import MainWindow


def make_train(window: "MainWindow") -> "TrainPage":
    """The Train page, listening to the run that goes on."""
    from app.pages.train import TrainPage  # noqa: PLC0415 -- imports pyqtgraph

    page, session = TrainPage(), window.session
    session.began.connect(page.begin)
    session.happened.connect(page.on_event)
    session.ended.connect(page.end_run)
    session.paused_changed.connect(page.set_paused)
    page.start_requested.connect(window.start_training)
    page.resume_requested.connect(window.resume_training)
    page.chat_requested.connect(window.chat_with)
    page.export_requested.connect(window.export)
    return page


def make_runs(window: "MainWindow") -> "RunsPage":
    """The Runs page."""
    from app.pages.runs import RunsPage  # noqa: PLC0415 -- imports pyqtgraph

    page = RunsPage()
    page.open_requested.connect(window.show_run)
    page.start_requested.connect(lambda: window.show_page("train"))
    page.resume_requested.connect(window.resume_training)
    page.repeat_requested.connect(window.repeat)
    page.chat_requested.connect(window.chat_with)
    page.export_requested.connect(window.export)
    window.session.began.connect(lambda _run: page.refresh())
    window.session.ended.connect(page.refresh)
    return page


def make_chat(window: "MainWindow") -> "ChatPage":
    """The Chat page."""
    from app.pages.chat import ChatPage  # noqa: PLC0415

    page = ChatPage(window.operations)
    page.train_requested.connect(lambda: window.show_page("train"))
    page.set_base(window.draft.config.model.path)
    window.draft.config_changed.connect(lambda config: page.set_base(config.model.path))
    window.session.ended.connect(page.refresh_runs)
    return page


def open_export_wizard(window: "MainWindow", run_dir: Path) -> QWidget:
    """The export wizard for a run."""
    from app.export_wizard import ExportWizard  # noqa: PLC0415

    wizard = ExportWizard(window.operations, run_dir, parent=window)
    wizard.chat_requested.connect(window.chat_with)
    wizard.open()
    return wizard
