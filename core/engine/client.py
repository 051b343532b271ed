"""The engine as the window sees it: start it, give it jobs, read events, kill it.

    client = EngineClient("train")
    client.start()
    for event in client.run(Train(config), control): ...

Light: imports no torch. Jobs run in a child process (`core.engine.server`), so nothing they do can
take the window with it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from core import events, jobs
from core.control import Command, Control, Instruction
from core.engine import protocol
from core.engine.channel import Channel, connect
from core.engine.child import Child, kill_tree, tail
from core.engine.listening import Inbox, Patience, Pulse, event_of, listen
from core.engine.session import EngineState, Session
from core.errors import CoreError, EngineError
from core.launch import EVERY_GPU
from core.runs.folder import RunFolder

__all__ = ["EngineClient", "EngineState", "Patience", "Role", "attach"]

Role = Literal["train", "work"]
_LOOK_SECONDS = 0.05
_END_SECONDS = 10.0  # for an engine that has nothing to save


class EngineClient:
    """One engine: at most one child process at a time, started again after a crash.

    Methods may be called from any thread. Several jobs may be given at once; they run in line.

    Args:
        role: "train" for runs, "work" for the short jobs.
        on_change: called from some thread whenever `state` may have changed.
        patience: how long an engine that does not answer is waited for.
        linger_seconds: how long the process stays without a client and without work.
        runner: "module:factory" of what does the jobs in the child; "" is the real one.
        together: how many processes train a run on all devices, as torchrun takes it.
    """

    def __init__(self, role: Role, *, on_change: Callable[[], None] | None = None, patience: Patience | None = None,
                 linger_seconds: float = 60.0, runner: str = "", together: str = EVERY_GPU) -> None:
        self.role = role
        self._on_change = on_change or (lambda: None)
        self._patience = patience or Patience()
        self._linger_seconds = linger_seconds
        self._runner = runner
        self._together = together
        self._ready: protocol.Ready | None = None
        self._lock = threading.Lock()
        self._session: Session | None = None

    @property
    def state(self) -> EngineState:
        """starting (also while torch is imported), idle, busy, crashed (see `error`) or closed."""
        session = self._session
        return session.state if session else "closed"

    @property
    def error(self) -> EngineError | None:
        """What became of the last process; None while one lives."""
        session = self._session
        return session.error if session else None

    @property
    def pid(self) -> int | None:
        """Process id of the child, once it is started."""
        session = self._session
        return session.pid if session else None

    @property
    def hardware(self) -> protocol.Ready:
        """What the first warm process found, which does not change with the process; nothing until one is warm."""
        if self._ready is None and self._session is not None:
            self._ready = self._session.ready
        return self._ready or protocol.Ready()

    def start(self) -> None:
        """Start the process if none lives; returns at once, `state` tells how far it is."""
        self._living_session()

    def run(self, job: jobs.Job, control: Control) -> Iterator[events.Event]:
        """Run a job and yield its events up to `Result`, or `Failed` if it raised; blocks in between.

        Commands given to `control` reach the job at once. Closing the generator early stops a
        short job; a training run goes on.

        Raises:
            EngineError: the process died (`details` has its exit status and the end of its log), or
                it did not react to a stop and was killed.
        """
        if not _is_for_all(job) or not self._finds_several(control):
            yield from self._living_session().run(job, control, self._patience)
            return
        session = self._session_of_several()
        yield from session.run(job, control, self._patience)
        session.quit(_END_SECONDS)  # it holds every GPU; the next job starts an engine of one process

    def kill(self) -> None:
        """End the process for certain, also one that hangs; what runs raises EngineError."""
        session = self._session
        if session is not None:
            session.kill()

    def close(self, keep_running: bool = True, grace_seconds: float = 30.0) -> None:
        """Let go of the engine.

        Args:
            keep_running: True: a training run goes on alone and an idle process soon ends by
                itself. False: what runs is stopped and saves what it has, and the process is gone
                when this returns.
            grace_seconds: how long saving may take before the process is killed.
        """
        session = self._session
        if session is None:
            return
        if keep_running:
            session.let_go()
        else:
            session.quit(grace_seconds)

    def _finds_several(self, control: Control) -> bool:
        """Whether there is more than one device; the engine of one process knows it once it is warm."""
        if self._together != EVERY_GPU:
            return True
        session = self._living_session()
        while session.state == "starting" and not control.stop_requested:
            time.sleep(_LOOK_SECONDS)
        return self.hardware.gpus > 1

    def _session_of_several(self) -> Session:
        """A new one in the place of the engine that is there, whose memory is needed."""
        with self._lock:
            if self._session is not None and self._session.takes_jobs:
                self._session.quit(_END_SECONDS)
            self._session = Session(
                lambda: Child(self.role, self._runner, self._linger_seconds, self._together), self._on_change)
            return self._session

    def _living_session(self) -> Session:
        with self._lock:
            if self._session is None or not self._session.takes_jobs:
                self._session = Session(lambda: Child(self.role, self._runner, self._linger_seconds), self._on_change)
            return self._session


def _is_for_all(job: jobs.Job) -> bool:
    """True for a run on every GPU of this machine."""
    if isinstance(job, jobs.Resume):
        with contextlib.suppress(CoreError):  # the job itself will tell what is wrong with the folder
            return RunFolder(job.run_dir).config().training.device == "all"
    return isinstance(job, jobs.Train) and job.config.training.device == "all"


def attach(run: RunFolder, control: Control, patience: Patience | None = None) -> Iterator[events.Event]:
    """Follow a run that another window started: all its events so far, then those that come.

    No event is lost or doubled in between. A run that was resumed has the events of its earlier
    parts in front, with their Failed or Result. Commands given to `control` reach the run.

    Raises:
        EngineError: no engine trains this run now, or it died.
    """
    channel, pid, log = _connect_to(run)
    try:
        following = _ask_to_follow(channel, run)
        pulse = Pulse()
        pulse.connected = True
        inbox = Inbox(pulse)
        threading.Thread(target=_deliver, args=(channel, following.id, inbox, pulse, log), name="attached",
                         daemon=True).start()

        def forward(command: Instruction) -> None:
            channel.send(protocol.Tell(following.id, command))

        unsubscribe = control.subscribe(forward)
        try:
            if control.stop_requested:
                forward(Command.STOP)
            yield from run.read_events(following.recorded_bytes)
            yield from listen(inbox, control, True, patience or Patience(), lambda: kill_tree(pid))
        finally:
            unsubscribe()
    finally:
        channel.close(flush_seconds=1.0)


def _connect_to(run: RunFolder) -> tuple[Channel, int, str]:
    try:
        address = protocol.Address.read(run.engine_path)
        channel, welcome = connect(address)
    except OSError as error:  # no file, nobody there, or somebody else
        raise _not_running(run) from error
    return channel, welcome.pid, address.log


def _ask_to_follow(channel: Channel, run: RunFolder) -> protocol.Following:
    channel.send(protocol.Follow(run.path.resolve()))
    for message in channel.messages():
        if isinstance(message, protocol.Following):
            return message
        if isinstance(message, protocol.NotFollowing):
            break
    raise _not_running(run)


def _not_running(run: RunFolder) -> EngineError:
    return EngineError(f"The run {run.path.name} is not being trained by an engine now.",
                       "If it was interrupted, resume it from its last checkpoint.")


def _deliver(channel: Channel, job_id: str, inbox: Inbox, pulse: Pulse, log: str) -> None:
    """Pass what the engine tells to the inbox; when the engine is gone, pass that on, too."""
    for message in channel.messages():
        pulse.beats += 1
        if isinstance(message, protocol.Told) and message.id == job_id:
            inbox.put(event_of(message))
    details = f"end of the engine's log:\n{tail(Path(log))}" if log else ""
    inbox.put(EngineError("The engine that trained this run ended unexpectedly.",
                          "Resume the run from its last checkpoint.", details))
