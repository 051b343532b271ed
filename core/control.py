"""What a job is told while it runs: stop, pause, resume, checkpoint now, other strengths.

A job polls its Control at every micro-batch, tokenised chunk and merged tensor. Any thread may
call the request methods; the client forwards them to the engine through `subscribe`.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from core.errors import Cancelled


class Command(StrEnum):
    """The commands, as they travel to the engine."""

    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Strengths:
    """New strengths of a Generate job's adapters, in the order of its `adapters`; the next token obeys them."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.values):
            raise ValueError("a strength must be a finite number")


Instruction = Command | Strengths


class Control:
    """Thread-safe requests to one running job."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._checkpoint = threading.Event()
        self._strengths: Strengths | None = None
        self._listeners: list[Callable[[Instruction], None]] = []

    def send(self, command: Instruction) -> None:
        """Apply a command here and pass it to every subscriber (the engine's client)."""
        if isinstance(command, Strengths):
            self._strengths = command
        elif command is Command.STOP:
            self._stop.set()
            self._running.set()  # a paused job must wake up to stop
        elif command is Command.PAUSE:
            self._running.clear()
        elif command is Command.RESUME:
            self._running.set()
        else:
            self._checkpoint.set()
        for listener in list(self._listeners):
            listener(command)

    def stop(self) -> None:
        """Ask the job to end after the present micro-batch and keep what it has."""
        self.send(Command.STOP)

    def pause(self) -> None:
        """Ask the job to wait before its next micro-batch."""
        self.send(Command.PAUSE)

    def resume(self) -> None:
        """Let a paused job go on."""
        self.send(Command.RESUME)

    def checkpoint(self) -> None:
        """Ask the job to save a checkpoint after the present step."""
        self.send(Command.CHECKPOINT)

    def set_strengths(self, *values: float) -> None:
        """Give the adapters of a Generate job other strengths, from its next token on."""
        self.send(Strengths(values))

    @property
    def strengths(self) -> Strengths | None:
        """The strengths that were sent last; None where none were sent."""
        return self._strengths

    @property
    def stop_requested(self) -> bool:
        """True once a stop was asked for; it is never taken back."""
        return self._stop.is_set()

    @property
    def paused(self) -> bool:
        """True between pause and resume."""
        return not self._running.is_set()

    def take_checkpoint_request(self) -> bool:
        """True once after each checkpoint request."""
        if self._checkpoint.is_set():
            self._checkpoint.clear()
            return True
        return False

    def wait_while_paused(self) -> None:
        """Block until the job may go on or must stop."""
        self._running.wait()

    def check(self) -> None:
        """Raise Cancelled if a stop was asked for; for jobs that leave nothing behind."""
        if self.stop_requested:
            raise Cancelled()

    def subscribe(self, listener: Callable[[Instruction], None]) -> Callable[[], None]:
        """Call `listener` with every later command. Returns the function that unsubscribes."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
