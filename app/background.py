"""A slow function in a thread of its own: reading logs, listing folders."""

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QObject, QThread, Signal, Slot

from core.errors import describe
from core.events import Failed


class _Call(QThread):
    returned = Signal(object)
    failed = Signal(object)

    def __init__(self, function: Callable[[], Any], parent: QObject) -> None:
        super().__init__(parent)
        self._function = function

    def run(self) -> None:
        """Call the function; an exception becomes one Failed."""
        try:
            self.returned.emit(self._function())
        except Exception as error:  # noqa: BLE001 -- whatever it is, the person must see it
            words = describe(error)
            self.failed.emit(Failed(words.message, words.hint, words.details))


class Background(QObject):
    """Calls functions one at a time, away from the window's thread; only the newest answer counts.

    A request that comes while one is on its way waits for it; of several that wait only the
    newest is called.
    """

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._call: _Call | None = None
        self._next: tuple[Callable[[], Any], Callable[[Any], object], Callable[[Failed], object]] | None = None
        self._done: Callable[[Any], object] | None = None
        self._failed: Callable[[Failed], object] | None = None

    @property
    def busy(self) -> bool:
        """True while a function is being called."""
        return self._call is not None

    def call(self, function: Callable[[], Any], done: Callable[[Any], object],
             failed: Callable[[Failed], object]) -> None:
        """Call `function` in the thread, then `done(result)` or `failed(Failed)` in this one."""
        if self._call is not None:
            self._next = (function, done, failed)
            self._done = self._failed = None  # the older answer is not wanted any more
            return
        self._done, self._failed = done, failed
        self._call = _Call(function, self)
        self._call.returned.connect(self._take)
        self._call.failed.connect(self._take_failure)
        self._call.finished.connect(self._finished)
        self._call.start()

    @Slot(object)
    def _take(self, result: Any) -> None:
        if self._done is not None:
            self._done(result)

    @Slot(object)
    def _take_failure(self, failure: Failed) -> None:
        if self._failed is not None:
            self._failed(failure)

    @Slot()
    def _finished(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.wait()
            call.deleteLater()
        if self._next is not None:
            waiting, self._next = self._next, None
            self.call(*waiting)

    def wait(self) -> None:
        """Block until the present function has returned; for the end of the program."""
        self._next = self._done = self._failed = None
        if self._call is not None:
            self._call.wait()
