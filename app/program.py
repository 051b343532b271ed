"""The program with a window: what it is made of, and what is left to do when it is closed."""

import os
import sys
from collections.abc import Sequence

from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QApplication

from app import theme
from app.errors import ErrorHooks
from app.operations import Operations
from app.settings import Settings, restore_geometry
from app.startup_probe import install_if_asked
from app.window import MainWindow
from core.engine.client import EngineClient


class _EngineWatch(QObject):
    """Brings an engine's change of state, told from any thread, into the window's."""

    changed = Signal()


def run_window(argv: Sequence[str] = ()) -> int:
    """Open the window and return the exit code when it is closed."""
    app = QApplication([sys.argv[0], *argv])
    app.setApplicationName("LoRA Workbench")
    settings = Settings()
    hooks = ErrorHooks()
    hooks.install()
    watch = _EngineWatch()
    operations = Operations(EngineClient("train", on_change=watch.changed.emit),
                            EngineClient("work", on_change=watch.changed.emit))
    watch.changed.connect(operations.changed)
    window = MainWindow(operations, settings, theme.Theme(app, settings.scheme))
    hooks.failed.connect(window.show_failure)
    restore_geometry(window, settings)
    install_if_asked(window)
    window.show()
    code = app.exec()
    hooks.remove()
    if operations.busy:
        # a thread still follows a run that goes on without us; a QThread must not be destroyed while it runs
        sys.stdout.flush()
        os._exit(code)
    return code
