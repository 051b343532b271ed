"""For bench/startup.py: tell when the window was first painted, then end the program."""

import os
import sys
from collections.abc import Callable

from PySide6.QtCore import QEvent, QObject, QTimer
from PySide6.QtWidgets import QWidget

VARIABLE = "LORA_WORKBENCH_STARTUP_PROBE"
MARKER = "first paint"


class FirstPaint(QObject):
    """Calls `painted` once, when `window` has been painted and the event loop is free again."""

    def __init__(self, window: QWidget, painted: Callable[[], None]) -> None:
        super().__init__(window)
        self._painted = painted
        self._window = window
        window.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802 - Qt's name
        """See the first paint event go by; it is not taken from the window."""
        if watched is self._window and event.type() == QEvent.Type.Paint:
            self._window.removeEventFilter(self)
            QTimer.singleShot(0, self._painted)
        return False


def install_if_asked(window: QWidget) -> None:
    """With the variable set, print the marker at the first paint and close the window."""
    if not os.environ.get(VARIABLE):
        return

    def tell() -> None:
        sys.stdout.write(f"{MARKER}\n")
        sys.stdout.flush()
        window.close()

    FirstPaint(window, tell)
