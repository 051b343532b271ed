"""The menu bar with the system's own short cuts."""

from typing import TYPE_CHECKING

from PySide6.QtGui import QAction, QActionGroup, QKeySequence
from PySide6.QtWidgets import QMenu, QWhatsThis

from app.sidebar import PAGES
from app.theme import Scheme

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.window import MainWindow

Keys = QKeySequence.StandardKey


class Menus:
    """Builds the menus of a window and keeps the actions whose state changes."""

    def __init__(self, window: "MainWindow") -> None:
        self._window = window
        self._build_file()
        self._build_edit()
        self._build_run()
        self._build_view()
        self._build_help()

    def _build_file(self) -> None:
        window = self._window
        menu = _menu(window, "&File")
        _add(menu, "Open &data…", window.open_data, Keys.Open)
        _add(menu, "Open &model…", window.open_model, "Ctrl+Shift+O")
        _add(menu, "Open &run file…", window.open_run_file, "Ctrl+Alt+O")
        self.recent = menu.addMenu("Open re&cent")
        self.recent.aboutToShow.connect(self._fill_recent)
        _add(menu, "Open the &sample", window.open_sample)
        menu.addSeparator()
        _add(menu, "Command and run &file…", window.show_command, Keys.SaveAs)
        menu.addSeparator()
        quit_action = _add(menu, "&Quit", window.close, Keys.Quit)
        quit_action.setMenuRole(QAction.MenuRole.QuitRole)

    def _build_edit(self) -> None:
        menu = _menu(self._window, "&Edit")
        stack = self._window.draft.undo_stack
        for action, key in ((stack.createUndoAction(menu, "&Undo"), Keys.Undo),
                            (stack.createRedoAction(menu, "&Redo"), Keys.Redo)):
            action.setShortcuts(key)
            menu.addAction(action)

    def _build_run(self) -> None:
        window = self._window
        menu = _menu(window, "&Run")
        self.start = _add(menu, "&Start training", window.start_training, "Ctrl+R")
        self.pause = _add(menu, "&Pause or go on", window.pause_or_go_on, "Ctrl+Shift+P")
        self.checkpoint = _add(menu, "Save a &checkpoint", window.session.checkpoint, "Ctrl+Shift+S")
        self.stop = _add(menu, "S&top", window.session.stop, "Ctrl+.")

    def _build_view(self) -> None:
        window = self._window
        menu = _menu(window, "&View")
        for number, entry in enumerate(PAGES, start=1):
            _add(menu, entry.name, lambda key=entry.key: window.show_page(key), f"Ctrl+{number}")
        menu.addSeparator()
        colours = menu.addMenu("&Colours")
        group = QActionGroup(colours)
        schemes: dict[Scheme, str] = {"system": "As the &system", "light": "&Light", "dark": "&Dark"}
        for scheme, words in schemes.items():
            action = _add(colours, words, lambda scheme=scheme: window.set_scheme(scheme))
            action.setCheckable(True)
            action.setChecked(window.settings.scheme == scheme)
            group.addAction(action)

    def _build_help(self) -> None:
        menu = _menu(self._window, "&Help")
        _add(menu, "What is &this?", QWhatsThis.enterWhatsThisMode, Keys.WhatsThis)
        about = _add(menu, "&About LoRA Workbench", self._window.about)
        about.setMenuRole(QAction.MenuRole.AboutRole)

    def _fill_recent(self) -> None:
        self.recent.clear()
        for path in self._window.settings.recent:
            _add(self.recent, path.replace("&", "&&"), lambda path=path: self._window.open_recent(path))
        if self.recent.isEmpty():
            self.recent.addAction("Nothing yet").setEnabled(False)

    def show_session(self, active: bool, ready: bool) -> None:
        """Enable what fits: a run goes on, or one could be started."""
        self.start.setEnabled(ready and not active)
        for action in (self.pause, self.checkpoint, self.stop):
            action.setEnabled(active)


def _menu(window: "MainWindow", title: str) -> QMenu:
    return window.menuBar().addMenu(title)


def _add(menu: QMenu, text: str, slot: "Callable[[], object]", key: QKeySequence.StandardKey | str | None = None
         ) -> QAction:
    action = QAction(text, menu)
    if isinstance(key, str):
        action.setShortcut(QKeySequence(key))
    elif key is not None:
        action.setShortcuts(key)
    action.triggered.connect(lambda _checked: slot())
    menu.addAction(action)
    return action
