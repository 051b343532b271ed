"""A slow function in a thread of its own: reading logs, listing folders."""

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QCoreApplication, QObject, QThread, Signal, Slot

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
        application = QCoreApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self.wait)
        self._call: _Call | None = None
        self._next: tuple[Callable[[], Any], Callable[[Any], object], Callable[[Failed], object]] | None = None
        self._done: Callable[[Any], object] | None = None
        self._failed: Callable[[Failed], object] | None = None
        self._deliver: Callable[[], object] | None = None

    @property
    def busy(self) -> bool:
        """True while a function is being called."""
        return self._call is not None

    def call(self, function: Callable[[], Any], done: Callable[[Any], object],
             failed: Callable[[Failed], object]) -> None:
        """Call `function` in the thread, then `done(result)` or `failed(Failed)` in this one."""
        if self._call is not None:
            self._next = (function, done, failed)
            return
        self._done, self._failed = done, failed
        # owned by the application: a page that is deleted must not take a running thread with it
        self._call = _Call(function, QCoreApplication.instance() or self)
        self._call.returned.connect(self._take)
        self._call.failed.connect(self._take_failure)
        self._call.finished.connect(self._finished)
        self._call.finished.connect(self._call.deleteLater)
        self._call.start()

    @Slot(object)
    def _take(self, result: Any) -> None:
        done = self._done
        self._deliver = (lambda: done(result)) if done is not None else None

    @Slot(object)
    def _take_failure(self, failure: Failed) -> None:
        failed = self._failed
        self._deliver = (lambda: failed(failure)) if failed is not None else None

    @Slot()
    def _finished(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.wait()
        deliver, self._deliver = self._deliver, None
        waiting, self._next = self._next, None
        if waiting is not None:
            self.call(*waiting)  # the older answer is not wanted any more
        elif deliver is not None:
            deliver()

    @Slot()
    def wait(self) -> None:
        """Block until the present function has returned; for the end of the program."""
        self._next = self._done = self._failed = self._deliver = None
        if self._call is not None:
            self._call.wait()
