"""The window: side bar, bars, pages, and what connects them. Pages know nothing of each other."""

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, cast

from PySide6.QtCore import Qt, QTimer, Slot
from PySide6.QtGui import QCloseEvent, QShowEvent
from PySide6.QtWidgets import QApplication, QDialog, QFileDialog, QMainWindow, QWidget

from app import late_pages, theme
from app.about_dialog import AboutDialog
from app.bars import StatusLine, TopBar
from app.close_dialog import ask_how_to_close
from app.cluster_dialog import ClusterDialog
from app.command_dialog import CommandDialog
from app.draft import Draft, suggested_name
from app.draft_files import DraftFiles
from app.errors import ErrorDialog
from app.frame import make_frame
from app.memory_probe import MemoryProbe
from app.menus import Menus
from app.operations import Operations
from app.page_stack import PageStack
from app.pages.data import DataPage
from app.pages.method import MethodPage
from app.pages.model import ModelPage
from app.run_session import RunSession, living_run
from app.settings import Settings
from app.sidebar import Sidebar
from app.state_view import StateView, page_of
from core.config import RunConfig
from core.errors import CoreError
from core.events import Failed
from core.records import AdapterCard
from core.runs.folder import RunFolder, new_run_path
from core.runs.history import is_run
from core.start import going_on_from

if TYPE_CHECKING:  # imported when they are first needed: they bring the plotting library
    from app.pages.chat import ChatPage
    from app.pages.train import TrainPage


class MainWindow(QMainWindow):
    """The whole window over one draft, one session and the two engines.

    Args:
        operations: the engines.
        settings: what is remembered.
        colours: puts schemes on the application.
        config: what to show first; None takes the unfinished run of last time or the sample.
    """

    def __init__(self, operations: Operations, settings: Settings, colours: theme.Theme,
                 config: RunConfig | None = None, name: str = "") -> None:
        super().__init__()
        self.operations = operations
        self.settings = settings
        self._colours = colours
        self.draft = Draft(operations, parent=self)
        self.files = DraftFiles(self.draft, settings, self.show_failure)
        self.memory = MemoryProbe(self.draft, operations, self)
        self.session = RunSession(operations, self)
        self.dialog: QDialog | None = None  # the newest that is open
        self.stack = PageStack({
            "model": lambda: ModelPage(self.draft, operations, self.memory),
            "data": lambda: DataPage(self.draft, operations),
            "method": lambda: MethodPage(self.draft, self.memory),
            "train": lambda: late_pages.make_train(self.session, self),
            "runs": lambda: late_pages.make_runs(self.session, self, lambda: self.settings.other_runs),
            "chat": lambda: late_pages.make_chat(operations, self.draft, self.session, self),
        })
        self._closing = self._shown = False
        self.sidebar, self.top, self.status = Sidebar(), TopBar(), StatusLine()
        self.setCentralWidget(make_frame(self.sidebar, self.top, self.stack, self.status))
        self.setMinimumSize(960, 600)
        self.resize(1280, 800)
        self.menus = Menus(self.menuBar(), self, self.session, settings, self.draft.undo_stack)
        self.state_view = StateView(self.draft, self.session, operations, sidebar=self.sidebar, top=self.top,
                                    status=self.status, menus=self.menus)
        self._connect()
        if config is not None:
            self.draft.replace(config, name)
        else:
            self.files.open_last()
        self.show_page("model")
        self._show_state()

    # --- how it is built -------------------------------------------------------------------

    def _connect(self) -> None:
        draft, session, top = self.draft, self.session, self.top
        self.sidebar.chosen.connect(self.show_page)
        self.sidebar.problem_clicked.connect(self.go_to_problem)
        top.start_pressed.connect(self.start_training)
        top.pause_pressed.connect(self.pause_or_go_on)
        top.stop_pressed.connect(session.stop)
        top.command_pressed.connect(self.show_command)
        top.name_edited.connect(draft.set_name)
        draft.name_changed.connect(self._name_changed)
        draft.problems_changed.connect(lambda _problems: self._show_state())
        draft.checking_changed.connect(lambda _checking: self._show_state())
        draft.config_changed.connect(lambda _config: self._show_state())
        session.began.connect(self._run_began)
        session.happened.connect(self.status.add)
        session.state_changed.connect(top.show_state)
        session.state_changed.connect(lambda _state: self._show_state())
        session.state_changed.connect(lambda _state: self.show_engines())
        session.failed.connect(self._run_failed)
        session.ended.connect(self._run_ended)
        self.stack.built.connect(lambda _key: self._tell_train())
        self.operations.failed.connect(self.show_failure)
        self.operations.changed.connect(self.show_engines)

    def page(self, key: str) -> QWidget:
        """A page by its key, built now if it was not yet."""
        return self.stack.page(key)

    def show_page(self, key: str) -> None:
        """Open a page."""
        self.stack.show_page(key)
        self.sidebar.mark(key)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        """After the first showing: engines, icons, the pages that are not in sight, runs that go on."""
        super().showEvent(event)
        if not self._shown:
            self._shown = True
            QTimer.singleShot(0, self._after_first_show)

    def _after_first_show(self) -> None:
        self.operations.start_engines()
        theme.load_icons()
        living = living_run()
        if living is not None and not self.session.active:
            self.session.attach(living)
        self.stack.build_ahead()

    # --- what is chosen --------------------------------------------------------------------

    def open_sample(self) -> None:
        """Choose the starter model and the sample dataset with the sample's own settings."""
        self.files.open_sample()

    def open_data(self) -> None:
        """Let the person add data files."""
        self.show_page("data")
        cast(DataPage, self.page("data")).add_files()

    def open_model(self) -> None:
        """Let the person open a model folder."""
        self.show_page("model")
        cast(ModelPage, self.page("model")).open_folder()

    def open_run_file(self) -> None:
        """Let the person open a run file."""
        path, _ = QFileDialog.getOpenFileName(self, "Open a run file", "", "Run files (*.toml)")
        if path:
            self.load_run_file(Path(path))

    def load_run_file(self, path: Path) -> None:
        """Take over a run file; a damaged one is told and changes nothing."""
        self.files.open_run_file(path)

    def open_recent(self, path: str) -> None:
        """A run file or a data file that was open before."""
        if path.endswith(".toml"):
            self.load_run_file(Path(path))
        else:
            self.draft.set_value("data.train", (path,))
            self.show_page("data")

    def repeat(self, config: RunConfig, name: str = "") -> None:
        """Take over the config of a run, to change and start again."""
        self.draft.replace(config, name)
        self.show_page("method")

    @Slot(str)
    def _name_changed(self, name: str) -> None:
        if self.top.name.text() != name:
            self.top.name.setText(name)
        self.setWindowTitle(f"{name} – LoRA Workbench" if name else "LoRA Workbench")  # noqa: RUF001

    # --- the run ---------------------------------------------------------------------------

    def start_training(self) -> None:
        """Start the run as it is put together; where something is missing, lead to it."""
        focused = self.focusWidget()
        if focused is not None:
            focused.clearFocus()  # a number that is being typed counts
        if self.session.active:
            return
        if not self.draft.ready:
            if self.draft.problems:
                self.go_to_problem("")
            return
        config = self.draft.config
        self.draft.set_name(self.draft.name or suggested_name(config))
        try:
            run_dir = new_run_path(self.draft.name)
            self.settings.save_draft(config)
        except (CoreError, OSError) as error:
            self.show_failure(Failed.of(error))
            return
        for file in config.data.train:
            self.settings.add_recent(file)
        self.session.start(config, run_dir)

    def resume_training(self, run_dir: Path) -> None:
        """Go on with a run from its last checkpoint."""
        if not self.session.active:
            self.session.resume(run_dir)

    def pause_or_go_on(self) -> None:
        """Pause the run, or end the pause."""
        if self.session.state == "paused":
            self.session.go_on()
        else:
            self.session.pause()

    @Slot(object)
    def _run_began(self, run_dir: Path) -> None:
        already_built = self.stack.is_built("train")
        self.status.begin()
        self.show_page("train")
        if not already_built:  # it was not there to hear of the beginning
            self._train_page().begin(run_dir)

    @Slot(object)
    def _run_failed(self, failed: Failed) -> None:
        run_dir = self.session.run_dir
        resumable = run_dir is not None and RunFolder(run_dir).has_begun()
        if not self._closing:
            self.show_failure(failed, resume=run_dir if resumable else None)

    @Slot()
    def _run_ended(self) -> None:
        QApplication.alert(self)  # a long run has ended while the person looked elsewhere
        self._show_state()
        if self._closing:
            self.close()

    # --- where the person is led -----------------------------------------------------------

    def go_to_problem(self, key: str) -> None:
        """Open the page with a problem and give its field the focus; "" takes the first problem of all."""
        found = [problem for problem in self.draft.problems if not key or page_of(problem) == key]
        if found:
            target = page_of(found[0])
            self.show_page(target)
            self.stack.show_field(target, found[0].field)
        elif key:
            self.show_page(key)

    def show_run(self, run_dir: Path) -> None:
        """Show a run of the past on the Train page."""
        self.show_page("train")
        self._train_page().show_run(run_dir)

    def run_moved(self, before: Path, after: Path) -> None:
        """A run folder has another name now: what shows it must not act on the old one."""
        if before in self.settings.other_runs:
            self.settings.add_other_run(after)
        if self.stack.is_built("train"):
            self._train_page().run_moved(before, after)

    def run_deleted(self, run_dir: Path) -> None:
        """A run folder lies in the trash now."""
        if self.stack.is_built("train"):
            self._train_page().run_deleted(run_dir)

    def chat_with(self, run_dir: Path) -> None:
        """Open the Chat page with a run."""
        self.show_page("chat")
        cast("ChatPage", self.page("chat")).choose_run(run_dir)

    def export(self, run_dir: Path) -> None:
        """Open the export wizard for a run."""
        self._open(late_pages.make_export_wizard(self.operations, self, run_dir, self))

    def open_folder(self, path: Path | None = None) -> None:
        """Show a run that lies elsewhere, or look at an adapter made elsewhere; None lets the person choose it."""
        if path is None:
            chosen = QFileDialog.getExistingDirectory(self, "Folder of a run or an adapter")
            path = Path(chosen) if chosen else None
        if path is not None and is_run(path):
            self.settings.add_other_run(path)
            self.show_run(path)
        elif path is not None:
            self._open(late_pages.make_import_dialog(self.operations, self, path, self))

    def chat_with_adapter(self, path: Path, base: str) -> None:
        """Open the Chat page with an adapter that no run made, on this base model."""
        self.show_page("chat")
        cast("ChatPage", self.page("chat")).choose_adapter(path, base)

    def train_from(self, card: AdapterCard, base: str) -> None:
        """Put a run together that goes on from an adapter; only the data are the person's own."""
        try:
            config = going_on_from(self.draft.config, card.settings, base)
        except CoreError as error:
            self.show_failure(Failed.of(error))
            return
        self.draft.replace(config, f"{card.name}-continued")
        self.show_page("method")

    def export_adapter(self, card: AdapterCard, base: str) -> None:
        """Open the export wizard for an adapter that no run made."""
        self._open(late_pages.make_adapter_wizard(self.operations, self, card, base, self))

    def show_command(self) -> None:
        """Show the equivalent command line and run file."""
        self._open(CommandDialog(self.draft.config, self.draft.name or suggested_name(self.draft.config), self))

    def use_all_gpus(self, all_of_them: bool) -> None:
        """Train on every GPU of this machine, or on one."""
        self.draft.set_value("training.device", "all" if all_of_them else "auto")

    def run_elsewhere(self) -> None:
        """Show how the run is trained on other machines."""
        name = self.draft.name or suggested_name(self.draft.config)
        self._open(ClusterDialog(self.draft.config, name, self))

    @Slot(object)
    def show_failure(self, failed: Failed, resume: Path | None = None) -> None:
        """Tell a failure; with a run folder the dialog offers to resume it."""
        dialog = ErrorDialog(failed, self, resumable=resume is not None)
        if resume is not None:
            dialog.accepted.connect(lambda: self.resume_training(resume))
        self._open(dialog)

    def about(self) -> None:
        """Version and license."""
        self._open(AboutDialog(metadata.version("lora-workbench"), self))

    def _open(self, dialog: QDialog) -> None:
        """Open a dialog over the window; it is gone for good when it is closed."""
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.finished.connect(lambda _result: self._dialog_closed(dialog))
        self.dialog = dialog
        dialog.open()

    def _dialog_closed(self, dialog: QDialog) -> None:
        if self.dialog is dialog:
            self.dialog = None

    def set_scheme(self, scheme: theme.Scheme) -> None:
        """Change the colours and remember it."""
        self.settings.scheme = scheme
        self._colours.set_scheme(scheme)

    def _show_state(self) -> None:
        self.state_view.show()
        self._tell_train()

    def _tell_train(self) -> None:
        if self.stack.is_built("train"):
            self._train_page().set_ready(self.draft.ready, self.state_view.why_not())

    def _train_page(self) -> "TrainPage":
        return cast("TrainPage", self.page("train"))

    @Slot()
    def show_engines(self) -> None:
        """Put the engines' state into words."""
        self.state_view.show_engines()

    # --- the end ---------------------------------------------------------------------------

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """During a run ask what becomes of it; else remember everything and let go of the engines."""
        keep = False
        if self.session.active and not self._closing:
            answer = ask_how_to_close(self)
            if answer == "cancel":
                event.ignore()
                return
            keep = answer == "keep"
            if not keep:
                self._closing = True
                self.session.stop()
        if self._closing and self.session.active:
            event.ignore()  # closed again when the run has ended
            return
        self.settings.geometry = self.saveGeometry()
        if not self.files.keep():
            event.ignore()
            return
        self._closing = True
        self.stack.stop_building()
        self.operations.close(keep_training=keep)
        event.accept()
