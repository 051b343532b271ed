"""One engine process from its start to its end, and the jobs that were given to it."""

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Literal

from core import events, jobs
from core.control import Command, Control, Instruction
from core.engine import protocol
from core.engine.channel import Channel, connect
from core.engine.child import Child
from core.engine.listening import Inbox, Patience, Pulse, event_of, listen
from core.errors import EngineError, describe

EngineState = Literal["starting", "idle", "busy", "crashed", "closed"]
_START_SECONDS = 120.0  # a cold disk and a busy machine


class Session:
    """Starts the child in a thread of its own; jobs may be given to it at once.

    Args:
        start_child: starts the process.
        on_change: called from any thread when `state` may have changed.
    """

    def __init__(self, start_child: Callable[[], Child], on_change: Callable[[], None]) -> None:
        self._start_child = start_child
        self._on_change = on_change
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._channel: Channel | None = None
        self._backlog: list[protocol.Message] = []
        self._inboxes: dict[str, Inbox] = {}
        self._pulse = Pulse()
        self.ready: protocol.Ready | None = None  # once the engine is warm
        self._ending = False  # we or the engine itself meant it to end
        self._kept_running = False
        self._over: EngineError | None = None
        self._thread = threading.Thread(target=self._live, name="engine session", daemon=True)
        self._thread.start()

    @property
    def state(self) -> EngineState:
        """What to show for this engine."""
        with self._lock:
            if self._over is not None:
                return "closed" if self._ending else "crashed"
            if self._inboxes:
                return "busy"
            return "idle" if self.ready else "starting"

    @property
    def error(self) -> EngineError | None:
        """Why it is over; None while it lives."""
        return self._over

    @property
    def takes_jobs(self) -> bool:
        """False once it is over or about to be."""
        return self._over is None and not self._ending

    @property
    def pid(self) -> int | None:
        """Process id, once started."""
        return self._child.pid if self._child else None

    def run(self, job: jobs.Job, control: Control, patience: Patience) -> Iterator[events.Event]:
        """See EngineClient.run."""
        training = isinstance(job, jobs.Train | jobs.Resume)
        job_id = uuid.uuid4().hex
        inbox = self._open_inbox(job_id)

        def forward(command: Instruction) -> None:
            self._post(protocol.Tell(job_id, command))

        unsubscribe = control.subscribe(forward)
        try:
            self._post(protocol.Submit(job_id, jobs.to_plain(job)))
            if control.stop_requested:  # told before anybody listened
                forward(Command.STOP)
            elif control.paused:
                forward(Command.PAUSE)
            if control.strengths is not None:
                forward(control.strengths)
            yield from listen(inbox, control, training, patience, self.kill)
        except GeneratorExit:
            if not training:
                forward(Command.STOP)  # nobody wants the answer any more
            raise
        finally:
            unsubscribe()
            with self._lock:
                self._inboxes.pop(job_id, None)
            self._on_change()

    def kill(self) -> None:
        """End the process for certain."""
        with self._lock:
            self._ending = True
            child = self._child
        if child is not None:
            child.kill()
        self._thread.join(10.0)

    def let_go(self) -> None:
        """Leave the process alone: a run goes on, else it ends by itself."""
        with self._lock:
            self._ending = self._kept_running = True
            channel = self._channel
        if channel is None:  # nothing was given to it yet
            self.kill()
            return
        channel.close(flush_seconds=1.0)
        self._thread.join(10.0)

    def quit(self, grace_seconds: float) -> None:
        """Stop what runs, wait until it has saved what it has, and end the process."""
        with self._lock:
            self._ending = True
            child = self._child
        if child is not None and self._channel is not None:
            self._post(protocol.Quit())
            child.wait(grace_seconds)
        self.kill()

    def _open_inbox(self, job_id: str) -> Inbox:
        with self._lock:
            if self._over is not None:
                raise self._over
            inbox = self._inboxes[job_id] = Inbox(self._pulse)
        self._on_change()
        return inbox

    def _post(self, message: protocol.Message) -> None:
        with self._lock:
            if self._channel is not None:
                self._channel.send(message)
            elif self._over is None:
                self._backlog.append(message)

    def _live(self) -> None:
        """The session's thread: start, connect, read to the end, say what became of it."""
        try:
            child = self._start_child()
            with self._lock:
                self._child = child
                ending = self._ending
            if ending:  # kill() came before there was anything to kill
                child.kill()
            self._read(self._connect(child))
            error = self._what_happened(child)
        except EngineError as problem:
            error = problem
        except OSError as problem:
            error = EngineError("The engine can not be started.", describe(problem).message, str(problem))
        with self._lock:
            self._over = error
            self._channel = None
            for inbox in self._inboxes.values():
                inbox.put(EngineError(error.message, error.hint, error.details))
        self._on_change()

    def _connect(self, child: Child) -> Channel:
        address = child.wait_for_address(_START_SECONDS)
        try:
            channel, _ = connect(address)
        except OSError as error:
            child.wait(2.0)
            if child.is_alive():
                child.kill()
                raise
            raise child.death() from error
        with self._lock:
            self._pulse.connected = True
            self._channel = channel
            for message in self._backlog:
                channel.send(message)
            self._backlog.clear()
        return channel

    def _read(self, channel: Channel) -> None:
        for message in channel.messages():
            self._pulse.beats += 1
            match message:
                case protocol.Told():
                    inbox = self._inboxes.get(message.id)
                    if inbox is not None:  # else nobody waits for this job any more
                        inbox.put(event_of(message))
                case protocol.Ready():
                    self.ready = message
                    self._on_change()
                case protocol.Leaving():
                    self._ending = True
                case _:
                    pass  # Beat and Welcome are signs of life, no more
        channel.close()

    def _what_happened(self, child: Child) -> EngineError:
        if self._kept_running:
            child.let_go()
            return EngineError("The window let go of the engine.", "A run goes on; open it again to follow it.")
        if child.wait(5.0):
            child.forget_address()
        if self._ending and not child.is_alive():
            return EngineError("The engine was ended.", "It starts again with the next job.")
        return child.death()
