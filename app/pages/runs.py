"""The Runs page: every run on this machine, their curves over each other, and what differs between them."""

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QPoint, Qt, QTimer, Signal, SignalInstance, Slot
from PySide6.QtGui import QHideEvent, QKeyEvent, QShowEvent
from PySide6.QtWidgets import (
    QHBoxLayout,
    QMenu,
    QMessageBox,
    QPushButton,
    QSplitter,
    QStackedLayout,
    QVBoxLayout,
    QWidget,
)
from send2trash import send2trash

from app import theme
from app.background import Background
from app.folder_drop import FolderDrop
from app.run_difference import DifferencePanel
from app.run_list import run_choice
from app.run_overlay import RunOverlay
from app.run_table import RunTable, RunTableModel
from app.widgets import EmptyState, button, label, row
from core import events
from core.config import RunConfig
from core.errors import CoreError
from core.paths import runs_root
from core.runs.folder import RunFolder
from core.runs.history import RunSummary, list_runs, rename_run, require_idle

REFRESH_MILLISECONDS = 3000
NO_RUNS = "There are no runs yet. Each training run is kept here with its settings and curves."
ELSEWHERE_TIP = "A run that lies elsewhere, or an adapter made elsewhere; the folder can be dropped here too"


class RunsPage(QWidget):
    """Lists the run folders below `root`, and the `others` that were opened from elsewhere.

    Signals, each with the run folder: `open_requested`, `resume_requested`, `chat_requested`,
    `export_requested`; `repeat_requested(RunConfig)`; `start_requested()` in the empty state;
    `renamed(Path, Path)` and `deleted(Path)` when it is done; `elsewhere_requested(Path | None)`: the folder of a
    run or an adapter from elsewhere was dropped here, or is to be asked for.
    """

    open_requested = Signal(object)
    resume_requested = Signal(object)
    repeat_requested = Signal(object)
    chat_requested = Signal(object)
    export_requested = Signal(object)
    start_requested = Signal()
    renamed = Signal(object, object)
    deleted = Signal(object)
    elsewhere_requested = Signal(object)

    def __init__(self, root: Callable[[], Path] = runs_root, parent: QWidget | None = None, *,
                 others: Callable[[], list[Path]] = list) -> None:
        super().__init__(parent)
        self._root, self._others = root, others
        self._lister, self._deleter = Background(self), Background(self)
        self._loaded = False
        self.model = RunTableModel()
        self.table = RunTable(self.model)
        self.overlay = RunOverlay()
        self.difference = DifferencePanel()
        self.message = label("", "help")
        self.empty = EmptyState(NO_RUNS, "Go to Train", icon="stack", link="Open folder…", link_tip=ELSEWHERE_TIP)
        self._actions: dict[str, QPushButton] = {}
        self._build()
        self._connect()
        FolderDrop(self).dropped.connect(self.elsewhere_requested)
        self._timer = QTimer(self)
        self._timer.setInterval(REFRESH_MILLISECONDS)
        self._timer.timeout.connect(self.refresh)
        self._row_changed()

    def _build(self) -> None:
        lower = QWidget()
        below = QVBoxLayout(lower)
        below.setContentsMargins(0, 0, 0, 0)
        below.setSpacing(theme.GRID)
        below.addLayout(self._build_actions())
        below.addWidget(self.table, 1)
        below.addWidget(self.message)
        upper = QSplitter(Qt.Orientation.Horizontal)
        upper.addWidget(self.overlay)
        upper.addWidget(self.difference)
        upper.setHandleWidth(theme.CARD_GAP)
        upper.setChildrenCollapsible(False)
        upper.setSizes([640, 360])
        splitter = QSplitter(Qt.Orientation.Vertical)
        splitter.addWidget(upper)
        splitter.addWidget(lower)
        splitter.setHandleWidth(theme.CARD_GAP)
        splitter.setChildrenCollapsible(False)
        splitter.setSizes([300, 320])
        page = QWidget()
        inside = QVBoxLayout(page)
        margin = theme.PAGE_MARGIN
        inside.setContentsMargins(margin, theme.CARD_GAP, margin, theme.GRID)
        inside.addWidget(splitter)
        self._stack = QStackedLayout(self)
        self._stack.addWidget(QWidget())  # nothing, until the first list is there
        self._stack.addWidget(self.empty)
        self._stack.addWidget(page)

    def _build_actions(self) -> QHBoxLayout:
        items = (
            ("open", "Open", "chart-line", lambda: self._tell(self.open_requested)),
            ("continue", "Continue", "play", lambda: self._tell(self.resume_requested)),
            ("repeat", "Repeat with changes", "", self._repeat),
            ("chat", "Chat", "chats", lambda: self._tell(self.chat_requested)),
            ("export", "Export…", "export", lambda: self._tell(self.export_requested)),
            ("rename", "Rename", "pencil-simple", self.table.edit_name),
            ("delete", "Delete…", "trash", self.delete_selected),
        )
        for key, text, sign, slot in items:
            self._actions[key] = button(text, slot, icon=sign, role="danger" if key == "delete" else "")
        made = list(self._actions.values())
        self.elsewhere_button = button(
            "Open folder…", lambda: self.elsewhere_requested.emit(None), icon="folder-open", tip=ELSEWHERE_TIP)
        return row(*made[:-1], None, self.elsewhere_button, made[-1], spacing=6)

    def _connect(self) -> None:
        self.empty.pressed.connect(self.start_requested)
        self.empty.link_pressed.connect(lambda: self.elsewhere_requested.emit(None))
        self.model.ticked.connect(self._ticked)
        self.model.too_many.connect(lambda: self._say("No more than 12 runs can be compared at once."))
        self.model.rename_asked.connect(self._rename)
        self.overlay.failed.connect(self._failed)
        self.table.selectionModel().currentRowChanged.connect(self._row_changed)
        self.model.dataChanged.connect(self._row_changed)
        self.model.modelReset.connect(self._row_changed)
        self.table.doubleClicked.connect(lambda index: index.column() and self._tell(self.open_requested))
        self.table.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.table.customContextMenuRequested.connect(self._context_menu)

    # --- the list --------------------------------------------------------------------------

    @Slot()
    def refresh(self) -> None:
        """Read the list anew, away from the window's thread."""
        root, others = self._root(), self._others()
        if not self._lister.busy:
            self._lister.call(lambda: list_runs(root, others), self.show_runs, self._list_failed)

    def show_runs(self, runs: list[RunSummary]) -> None:
        """Show these runs; the newest is ticked the first time."""
        chosen = self.table.selected()
        self.empty.sentence.setText(NO_RUNS)
        self.model.set_runs(runs)
        self._stack.setCurrentIndex(2 if runs else 1)
        if chosen is not None:
            self.table.select(chosen.folder)
        if not self._loaded and runs:
            self._loaded = True
            first = next((run for run in runs if run.steps_done), runs[0])
            self.table.select(first.folder)
            self.model.tick(first.folder)
        else:
            self.overlay.update_runs(self.model.ticked_runs())

    @Slot()
    def _ticked(self) -> None:
        ticked = self.model.ticked_runs()
        self.overlay.show_runs(ticked)
        configs: list[tuple[str, RunConfig]] = []
        for run, _ in ticked:
            try:
                configs.append((run.name, RunFolder(run.folder).config()))
            except (CoreError, OSError):  # the table shows it as damaged already
                continue
        self.difference.show_configs(configs)

    @Slot()
    def _row_changed(self) -> None:
        run = self.table.selected()
        state = run.state if run else "damaged"
        trained = run is not None and state != "damaged" and bool(run_choice(run.folder).adapters)
        able = {
            "open": run is not None and state not in ("damaged", "new"),
            "continue": state in ("interrupted", "stopped", "failed") and run is not None and run.steps_done > 0,
            "repeat": run is not None and state != "damaged",
            "chat": trained, "export": trained and state != "running",
            "rename": run is not None and state != "running",
            "delete": run is not None and state != "running" and not self._deleter.busy,
        }
        for key, made in self._actions.items():
            made.setEnabled(able[key])

    # --- actions ---------------------------------------------------------------------------

    def _tell(self, signal: SignalInstance) -> None:
        run = self.table.selected()
        if run is not None:
            signal.emit(run.folder)

    def _repeat(self) -> None:
        run = self.table.selected()
        if run is None:
            return
        try:
            self.repeat_requested.emit(RunFolder(run.folder).config())
        except CoreError as error:
            self._say(f"{error.message} {error.hint}".strip(), failed=True)

    @Slot(object, str)
    def _rename(self, run: RunSummary, name: str) -> None:
        try:
            renamed = rename_run(RunFolder(run.folder), name)
        except CoreError as error:
            self._say(f"{error.message} {error.hint}".strip(), failed=True)
            return
        except OSError as error:
            self._failed(events.Failed.of(error))
            return
        self._say(f"Renamed to {renamed.path.name}.")
        self.model.moved(run.folder, renamed.path)
        self.renamed.emit(run.folder, renamed.path)
        self.refresh()

    def delete_selected(self) -> None:
        """Ask, then put the chosen run's folder into the system's trash."""
        run = self.table.selected()
        if run is None or self._deleter.busy or not self._confirmed(run):
            return

        def delete() -> Path:
            require_idle(RunFolder(run.folder), "deleted")
            send2trash(run.folder)
            return run.folder

        self._deleter.call(delete, self._deleted, self._not_deleted)
        self._row_changed()

    def _confirmed(self, run: RunSummary) -> bool:
        box = QMessageBox(self)
        box.setWindowTitle("Delete run")
        box.setIcon(QMessageBox.Icon.Question)
        box.setTextFormat(Qt.TextFormat.PlainText)
        box.setText(f"Move the run “{run.name}” to the trash?")
        box.setInformativeText("Its settings, curves, checkpoints and adapter go with it. You can get them back from "
                               "the trash.")
        move = box.addButton("Move to trash", QMessageBox.ButtonRole.DestructiveRole)
        box.addButton(QMessageBox.StandardButton.Cancel)
        box.exec()
        return box.clickedButton() is move

    def _deleted(self, folder: Path) -> None:
        self._row_changed()
        self._say(f"{folder.name} lies in the trash now.")
        self.deleted.emit(folder)
        self.refresh()

    def _not_deleted(self, failure: events.Failed) -> None:
        self._row_changed()
        self._failed(failure)

    def _list_failed(self, failure: events.Failed) -> None:
        self._failed(failure)
        if not self.model.runs:  # the line below the table is not in sight
            self.empty.sentence.setText(f"{failure.message} {failure.hint}".strip())
            self._stack.setCurrentIndex(1)

    def _failed(self, failure: events.Failed) -> None:
        self._say(f"{failure.message} {failure.hint}".strip(), failed=True)

    def _say(self, text: str, *, failed: bool = False) -> None:
        self.message.setText(text)
        theme.set_role(self.message, "error" if failed else "help")

    @Slot(QPoint)
    def _context_menu(self, place: QPoint) -> None:
        menu = QMenu(self)
        for made in self._actions.values():
            action = menu.addAction(made.text())
            action.setEnabled(made.isEnabled())
            action.triggered.connect(made.click)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.popup(self.table.viewport().mapToGlobal(place))

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802 -- Qt's name
        """Delete and Enter act on the chosen run."""
        keys = {Qt.Key.Key_Delete: "delete", Qt.Key.Key_Return: "open", Qt.Key.Key_Enter: "open"}
        made = self._actions.get(keys.get(Qt.Key(event.key()), ""))
        if made is not None and made.isEnabled():
            made.click()
        else:
            super().keyPressEvent(event)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        """Keep the list fresh while it is seen."""
        super().showEvent(event)
        self.refresh()
        self._timer.start()

    def hideEvent(self, event: QHideEvent) -> None:  # noqa: N802
        """No need to look while nobody sees."""
        super().hideEvent(event)
        self._timer.stop()
