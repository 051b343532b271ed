"""One way to run every job: on an engine, in a thread, with one default route for failures.

    operations.work(InspectModel("starter")).on(ModelInspected, self._show).start()

An engine does one job at a time, so operations for the same engine wait in line. A failure that
nobody asked for with `.on(Failed, …)` goes to `Operations.failed`, where the window shows it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, Protocol, Self, TypeVar

from PySide6.QtCore import QCoreApplication, QObject, Signal, Slot
from shiboken6 import isValid

from app.engine_thread import EngineThread
from core.control import Control
from core.engine.protocol import Ready
from core.events import Event, Failed, Result
from core.jobs import Job

E = TypeVar("E")
Role = Literal["train", "work"]


class Client(Protocol):
    """What the window needs of core.engine.client.EngineClient."""

    @property
    def state(self) -> str:
        """starting, idle, busy, crashed or closed."""
        ...

    @property
    def hardware(self) -> Ready:
        """What this machine computes with, as far as is known."""
        ...

    def start(self) -> None:
        """Start the engine process without waiting for it."""
        ...

    def run(self, job: Job, control: Control) -> Iterator[Event]:
        """Run one job, blocking; ends after Result or Failed."""
        ...

    def kill(self) -> None:
        """End the engine process at once."""
        ...

    def close(self, keep_running: bool = True) -> None:
        """Let go of the engine; False stops what runs and waits until it is saved."""
        ...


class Operation(QObject):
    """One job on its way. Connect with `on`, then `start`; it deletes itself after `ended`.

    Signals: `happened(Event)` for every event, then one of `finished(Result)`, `failed(Failed)` or
    `cancelled()`, and last `ended()`.
    """

    happened = Signal(object)
    finished = Signal(object)
    failed = Signal(object)
    cancelled = Signal()
    ended = Signal()

    def __init__(self, stream: Callable[[Control], Iterator[Event]], line: "_Line", label: str) -> None:
        # A child of the application, not of Operations: its slots may hold the last reference to a page, and with it
        # to Operations. An operation that deletes its own parent while it is deleted would be deleted twice.
        super().__init__(QCoreApplication.instance())
        self.control = Control()
        self.label = label
        self._stream = stream
        self._line = line
        self._slots: list[tuple[type, Callable[[Any], object]]] = []
        self._thread: EngineThread | None = None
        self._outcome: Result | Failed | None = None
        self._handles_failure = False
        self._superseded = False

    def on(self, kind: type[E], slot: Callable[[E], object]) -> Self:
        """Call `slot` with every event of this class, in the window's thread. Chainable."""
        self._slots.append((kind, slot))
        if kind is Failed:
            self._handles_failure = True
        return self

    def start(self) -> Self:
        """Run, as soon as the engine is free."""
        self._line.enqueue(self)
        return self

    def cancel(self) -> None:
        """Ask the job to stop; `cancelled` follows if it leaves nothing behind, else its own end."""
        if self._thread is None and self._line.drop(self):
            self.cancelled.emit()
            self._end()
            return
        self.control.stop()

    def discard(self) -> None:
        """Cancel and be silent: a newer question has replaced this one."""
        self._superseded = True
        self.cancel()

    @property
    def running(self) -> bool:
        """True while the job is on the engine."""
        return self._thread is not None

    def wait(self, milliseconds: int = 5000) -> None:
        """Block until the thread has ended; for the end of the program."""
        if self._thread is not None:
            self._thread.requestInterruption()
            self._thread.wait(milliseconds)

    def begin(self) -> None:
        """Called by the line when it is this operation's turn."""
        thread = EngineThread(partial(self._stream, self.control), self)
        thread.happened.connect(self._receive)
        thread.finished.connect(self._thread_finished)
        self._thread = thread
        thread.start()

    @Slot(object)
    def _receive(self, event: Event) -> None:
        if isinstance(event, Result | Failed):
            self._outcome = event
        if self._superseded or (isinstance(event, Failed) and event.cancelled):
            return
        self.happened.emit(event)
        for kind, slot in self._slots:
            if isinstance(event, kind) and _alive(slot):
                slot(event)

    @Slot()
    def _thread_finished(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.wait()
        self._line.release(self)
        if self._superseded or (isinstance(self._outcome, Failed) and self._outcome.cancelled):
            self.cancelled.emit()
        elif isinstance(self._outcome, Failed):
            self.failed.emit(self._outcome)
            if not self._handles_failure:
                self._line.failed(self._outcome)
        else:
            self.finished.emit(self._outcome or Result())
        self._end()

    def _end(self) -> None:
        self.ended.emit()
        self.deleteLater()


def _alive(slot: Callable[[Any], object]) -> bool:
    """False for a method of a Qt object that was deleted meanwhile: a dialog closed before its answer came."""
    owner = getattr(slot.func if isinstance(slot, partial) else slot, "__self__", None)
    return not isinstance(owner, QObject) or isValid(owner)


class _Line:
    """The operations that wait for one engine."""

    def __init__(self, failed: Callable[[Failed], None], changed: Callable[[], None]) -> None:
        self.failed = failed
        self._changed = changed
        self._waiting: deque[Operation] = deque()
        self.current: Operation | None = None

    def enqueue(self, operation: Operation) -> None:
        self._waiting.append(operation)
        self._next()

    def drop(self, operation: Operation) -> bool:
        """Take a waiting operation out of the line; False if it does not wait."""
        if operation in self._waiting:
            self._waiting.remove(operation)
            self._changed()
            return True
        return False

    def empty(self) -> None:
        """Forget all that wait."""
        self._waiting.clear()

    def release(self, operation: Operation) -> None:
        if self.current is operation:
            self.current = None
        self._next()

    def _next(self) -> None:
        if self.current is None and self._waiting:
            self.current = self._waiting.popleft()
            self.current.begin()
        self._changed()


class Operations(QObject):
    """The two engines of the window: one trains, one serves the short jobs.

    Signals: `failed(Failed)` for failures without an own handler; `changed()` when an engine
    becomes busy or free, and when its process starts, is warm or ends.
    """

    failed = Signal(object)
    changed = Signal()

    def __init__(self, train_client: Client, work_client: Client, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._clients: dict[Role, Client] = {"train": train_client, "work": work_client}
        self._lines: dict[Role, _Line] = {role: _Line(self.failed.emit, self.changed.emit) for role in self._clients}
        self._latest: dict[str, Operation] = {}

    def start_engines(self) -> None:
        """Start both engine processes in the background."""
        for client in self._clients.values():
            client.start()

    def work(self, job: Job, *, latest: str = "") -> Operation:
        """A short job for the working engine; call `.start()` on what is returned.

        Args:
            job: the request.
            latest: a name; an earlier operation of the same name that is not done is discarded.
        """
        return self._operation("work", partial(self._clients["work"].run, job), type(job).__name__, latest)

    def train(self, job: Job) -> Operation:
        """A Train or Resume job for the training engine; call `.start()` on what is returned."""
        return self._operation("train", partial(self._clients["train"].run, job), type(job).__name__, "")

    def follow(self, stream: Callable[[Control], Iterator[Event]], label: str = "attach") -> Operation:
        """Follow a run that another engine trains: `follow(lambda control: attach(run, control))`."""
        return self._operation("train", stream, label, "")

    def client(self, role: Role) -> Client:
        """The engine's client itself, for its state and for `kill`."""
        return self._clients[role]

    def current(self, role: Role) -> Operation | None:
        """The operation that the engine works on now."""
        return self._lines[role].current

    @property
    def busy(self) -> bool:
        """True while a thread of an operation runs."""
        return any(line.current is not None and line.current.running for line in self._lines.values())

    def _operation(self, role: Role, stream: Callable[[Control], Iterator[Event]], label: str,
                   latest: str) -> Operation:
        operation = Operation(stream, self._lines[role], label)
        if latest:
            earlier = self._latest.get(latest)
            if earlier is not None:
                earlier.discard()
            self._latest[latest] = operation
            operation.ended.connect(self._forget)
        return operation

    @Slot()
    def _forget(self) -> None:
        self._latest = {name: operation for name, operation in self._latest.items() if operation is not self.sender()}

    def close(self, *, keep_training: bool) -> None:
        """Let go of both engines; blocks until their threads have ended. Short jobs are cancelled.

        Args:
            keep_training: True leaves a run to go on alone, False makes it save and stop.
        """
        for line in self._lines.values():
            line.empty()
        working = self._lines["work"].current
        if working is not None:
            working.discard()
        self._clients["train"].close(keep_running=keep_training)
        self._clients["work"].close(keep_running=False)
        for line in self._lines.values():
            if line.current is not None:
                line.current.wait(milliseconds=3000)
