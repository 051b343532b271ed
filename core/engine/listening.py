"""Waiting for the events of one job, and noticing when nothing comes any more."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from core.control import Control
from core.engine.protocol import Told
from core.errors import Cancelled, EngineError
from core.events import Event, Failed, Result, Warned, from_plain

_TICK_SECONDS = 0.1


@dataclass(frozen=True)
class Patience:
    """How long an engine that does not answer is waited for, in seconds.

    `silence`: the person is warned when the process has given no sign of life for so long.
    `after_stop`: a job that was told to stop is given so long. A short job must end in it or tell
    of progress, else its process is killed (it leaves nothing half done). A training run is killed
    only if its process gives no sign of life at all: a slow step must not cost the adapter.
    """

    silence: float = 10.0
    after_stop: float = 30.0


class Pulse:
    """Counts signs of life of an engine; written by the thread that reads from it."""

    def __init__(self) -> None:
        self.beats = 0
        self.connected = False


class Inbox:
    """Events of one job, from the reading thread to the thread that runs the job."""

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse
        self._items: queue.SimpleQueue[Event | EngineError] = queue.SimpleQueue()

    def put(self, item: Event | EngineError) -> None:
        """Deliver an event, or the error that ends the stream."""
        self._items.put(item)

    def take(self, seconds: float) -> Event | None:
        """The next event, None if none came; raises the error that ended the stream."""
        try:
            item = self._items.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(item, EngineError):
            raise item
        return item


def event_of(message: Told) -> Event | EngineError:
    """The event in a message; an error where a different version of the program sent it."""
    try:
        return from_plain(message.event)
    except ValueError as error:
        return EngineError("The engine told something that this version does not understand.",
                           "Another version of the program may have started it.", str(error))


def listen(inbox: Inbox, control: Control, training: bool, patience: Patience,
           end: Callable[[], None]) -> Iterator[Event]:
    """Yield a job's events up to its Result or Failed.

    Args:
        inbox: where they arrive.
        control: tells whether the person asked for a stop.
        training: a run is waited for longer than a short job, see Patience.
        patience: how long.
        end: kills the engine's process.

    Raises:
        EngineError: the engine is gone, or did not react to a stop and was killed.
    """
    silent = stopping = 0.0  # seconds, in ticks of our own: a suspended machine counts for nothing
    beats = inbox.pulse.beats
    warned = False
    while True:
        event = inbox.take(_TICK_SECONDS)
        if event is not None:
            yield event
            if isinstance(event, Result | Failed):
                return
            silent = stopping = 0.0
            continue
        if control.stop_requested and not inbox.pulse.connected:
            yield Failed.of(Cancelled())  # the engine only starts; it will read the stop with the job
            return
        alive = inbox.pulse.beats != beats or not inbox.pulse.connected
        beats = inbox.pulse.beats
        silent = 0.0 if alive else silent + _TICK_SECONDS
        stopping = stopping + _TICK_SECONDS if control.stop_requested else 0.0
        if (min(silent, stopping) if training else stopping) > patience.after_stop:
            end()
            raise EngineError("The engine did not react to Stop and was ended.",
                              "It starts again with the next job; a run can be resumed from its last checkpoint.")
        if silent > patience.silence and not warned:
            warned = True
            yield Warned(f"The engine has not answered for {patience.silence:.0f} seconds.",
                         "It may be starved of memory or suspended. Stop ends it.")
