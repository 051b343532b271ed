"""The only place where Qt meets the event stream of a job."""

from collections.abc import Callable, Iterator

from PySide6.QtCore import QObject, QThread, Signal

from core.events import Event, Failed


class EngineThread(QThread):
    """Runs one blocking stream of events and emits each event to the thread of its owner.

    Args:
        stream: called in the thread; `lambda: client.run(job, control)` or an attached run.
        parent: owner.
    """

    happened = Signal(object)

    def __init__(self, stream: Callable[[], Iterator[Event]], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._stream = stream

    def run(self) -> None:
        """Drive the stream to its end; an exception becomes one Failed event."""
        try:
            for event in self._stream():
                self.happened.emit(event)
                if self.isInterruptionRequested():  # the window closes and the run goes on without it
                    return
        except Exception as error:  # noqa: BLE001 -- whatever it is, the person must see it
            self.happened.emit(Failed.of(error))
