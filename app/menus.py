"""The menu bar with the system's own short cuts."""

from collections.abc import Callable

from PySide6.QtGui import QAction, QActionGroup, QKeySequence, QUndoStack
from PySide6.QtWidgets import QMenu, QMenuBar, QWhatsThis

from app.actions import Actions
from app.run_session import RunSession
from app.settings import Settings
from app.sidebar import PAGES
from app.theme import Scheme

Keys = QKeySequence.StandardKey


class Menus:
    """Fills the menu bar and keeps the actions whose state changes."""

    def __init__(self, bar: QMenuBar, actions: Actions, session: RunSession, settings: Settings,
                 undo_stack: QUndoStack) -> None:
        self._bar, self._actions, self._settings = bar, actions, settings
        self._build_file()
        self._build_edit(undo_stack)
        self._build_run(session)
        self._build_view()
        self._build_help()

    def _build_file(self) -> None:
        actions, menu = self._actions, self._bar.addMenu("&File")
        _add(menu, "Open &data…", actions.open_data, Keys.Open)
        _add(menu, "Open &model…", actions.open_model, "Ctrl+Shift+O")
        _add(menu, "Open &run file…", actions.open_run_file, "Ctrl+Alt+O")
        _add(menu, "Open run or &adapter folder…", actions.open_folder, "Ctrl+Shift+I")
        self.recent = menu.addMenu("Open re&cent")
        self.recent.aboutToShow.connect(self._fill_recent)
        _add(menu, "Open the &sample", actions.open_sample)
        menu.addSeparator()
        _add(menu, "Command and run &file…", actions.show_command, Keys.SaveAs)
        menu.addSeparator()
        quit_action = _add(menu, "&Quit", actions.close, Keys.Quit)
        quit_action.setMenuRole(QAction.MenuRole.QuitRole)

    def _build_edit(self, stack: QUndoStack) -> None:
        menu = self._bar.addMenu("&Edit")
        for action, key in ((stack.createUndoAction(menu, "&Undo"), Keys.Undo),
                            (stack.createRedoAction(menu, "&Redo"), Keys.Redo)):
            action.setShortcuts(key)
            menu.addAction(action)

    def _build_run(self, session: RunSession) -> None:
        menu = self._bar.addMenu("&Run")
        self.start = _add(menu, "&Start training", self._actions.start_training, "Ctrl+R")
        self.pause = _add(menu, "&Pause or go on", self._actions.pause_or_go_on, "Ctrl+Shift+P")
        self.checkpoint = _add(menu, "Save a &checkpoint", session.checkpoint, "Ctrl+Shift+S")
        self.stop = _add(menu, "S&top", session.stop, "Ctrl+.")
        menu.addSeparator()
        self.all_gpus = QAction("Use &all GPUs of this machine", menu)
        self.all_gpus.setCheckable(True)
        self.all_gpus.setVisible(False)  # until an engine has found more than one
        self.all_gpus.triggered.connect(self._actions.use_all_gpus)
        menu.addAction(self.all_gpus)
        _add(menu, "Run &elsewhere…", self._actions.run_elsewhere)

    def _build_view(self) -> None:
        actions, menu = self._actions, self._bar.addMenu("&View")
        for number, entry in enumerate(PAGES, start=1):
            _add(menu, entry.name, lambda key=entry.key: actions.show_page(key), f"Ctrl+{number}")
        menu.addSeparator()
        colours = menu.addMenu("&Colours")
        group = QActionGroup(colours)
        schemes: dict[Scheme, str] = {"system": "As the &system", "light": "&Light", "dark": "&Dark"}
        for scheme, words in schemes.items():
            action = _add(colours, words, lambda scheme=scheme: actions.set_scheme(scheme))
            action.setCheckable(True)
            action.setChecked(self._settings.scheme == scheme)
            group.addAction(action)

    def _build_help(self) -> None:
        menu = self._bar.addMenu("&Help")
        _add(menu, "What is &this?", QWhatsThis.enterWhatsThisMode, Keys.WhatsThis)
        about = _add(menu, "&About LoRA Workbench", self._actions.about)
        about.setMenuRole(QAction.MenuRole.AboutRole)

    def _fill_recent(self) -> None:
        self.recent.clear()
        for path in self._settings.recent:
            _add(self.recent, path.replace("&", "&&"), lambda path=path: self._actions.open_recent(path))
        if self.recent.isEmpty():
            self.recent.addAction("Nothing yet").setEnabled(False)

    def show_gpus(self, gpus: int, device: str) -> None:
        """Offer to train on all GPUs where there are several; checked where the run's device is all of them."""
        self.all_gpus.setVisible(gpus > 1)
        self.all_gpus.setText(f"Use &all {gpus} GPUs of this machine")
        self.all_gpus.setChecked(device == "all")

    def show_session(self, active: bool, ready: bool) -> None:
        """Enable what fits: a run goes on, or one could be started."""
        self.start.setEnabled(ready and not active)
        for action in (self.pause, self.checkpoint, self.stop):
            action.setEnabled(active)


def _add(menu: QMenu, text: str, slot: Callable[[], object], key: QKeySequence.StandardKey | str | None = None
         ) -> QAction:
    action = QAction(text, menu)
    if isinstance(key, str):
        action.setShortcut(QKeySequence(key))
    elif key is not None:
        action.setShortcuts(key)
    action.triggered.connect(lambda _checked: slot())
    menu.addAction(action)
    return action
