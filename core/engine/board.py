"""The jobs that wait and the one that runs in an engine, and who listens to them."""

import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from core import events, jobs
from core.control import Command, Control, Instruction
from core.engine import protocol
from core.engine.channel import Channel
from core.errors import Cancelled
from core.runs.folder import RunFolder


@dataclass
class Ticket:
    """One job in an engine.

    `run` and `recorded_bytes` are known from the event Started on: all events that were sent of
    this run lie in the first `recorded_bytes` of its log.
    """

    id: str
    job: jobs.Job
    listeners: list[Channel]
    control: Control = field(default_factory=Control)
    run: RunFolder | None = None
    recorded_bytes: int = 0
    abandoned: bool = False  # a short job whose client went away

    @property
    def is_training(self) -> bool:
        """True for what goes on without a window."""
        return isinstance(self.job, jobs.Train | jobs.Resume)


class JobBoard:
    """One job at a time, the others wait in line. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._channels: list[Channel] = []

    @property
    def running(self) -> Ticket | None:
        """The job that runs now."""
        return self._running

    @property
    def deserted(self) -> bool:
        """True when nothing runs, nothing waits and nobody is connected."""
        with self._changed:
            return not (self._running or self._waiting or self._channels)

    def submit(self, ticket: Ticket) -> None:
        """Put a job at the end of the line."""
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify_all()

    def take(self, seconds: float) -> Ticket | None:
        """The next job, which then counts as running; None if none came in this time."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(seconds)
            self._running = self._waiting.popleft() if self._waiting else None
            return self._running

    def tell(self, job_id: str, command: Instruction) -> None:
        """Pass a command on; a job that still waits and is stopped ends here."""
        with self._changed:
            ticket = next((ticket for ticket in self._tickets() if ticket.id == job_id), None)
            if ticket is None:
                return  # it ended while the command was on its way
            ticket.control.send(command)
            if command is Command.STOP:
                self._stop(ticket)

    def stop_all(self) -> None:
        """Stop what runs and what waits."""
        with self._changed:
            for ticket in self._tickets():
                self._stop(ticket)

    def publish(self, ticket: Ticket, event: events.Event) -> None:
        """Send an event to all listeners, after it was recorded; never waits for one of them."""
        with self._changed:
            if isinstance(event, events.Started) and event.run_dir is not None and ticket.is_training:
                ticket.run = RunFolder(event.run_dir)
            if ticket.run is not None and ticket.run.events_path.exists():
                ticket.recorded_bytes = ticket.run.events_path.stat().st_size
            self._send(ticket, event)

    def finish(self, ticket: Ticket, last: events.Result | events.Failed) -> None:
        """Send the last event; nothing runs then."""
        with self._changed:
            self._running = None
            self._send(ticket, last)
            self._changed.notify_all()

    def refuse(self, job_id: str, channel: Channel, failure: events.Failed) -> None:
        """Answer a job that can not be run."""
        self._send(Ticket(job_id, jobs.Unload(), [channel]), failure)

    def send_to_all(self, message: protocol.Message) -> None:
        """Say something to every client."""
        with self._changed:
            for channel in self._channels:
                channel.send(message)

    def say_goodbye(self) -> None:
        """Tell every client that the process ends, and let what is queued be sent."""
        self.send_to_all(protocol.Leaving())
        for channel in list(self._channels):
            channel.close(flush_seconds=2.0)

    def arrive(self, channel: Channel) -> None:
        """Count a client."""
        with self._changed:
            self._channels.append(channel)

    def follow(self, channel: Channel, run_dir: Path) -> None:
        """Let a client listen to a run: no event is lost or doubled between its log and its stream."""
        with self._changed:
            ticket = self._running
            if ticket is None or ticket.run is None or ticket.run.path.resolve() != run_dir.resolve():
                channel.send(protocol.NotFollowing())
                return
            channel.send(protocol.Following(ticket.id, ticket.recorded_bytes))
            ticket.listeners.append(channel)

    def leave(self, channel: Channel) -> None:
        """Forget a client. Training goes on (and does not stay paused for ever); short jobs end."""
        with self._changed:
            self._channels.remove(channel)
            for ticket in self._tickets():
                if channel in ticket.listeners:
                    ticket.listeners.remove(channel)
                if not ticket.listeners and not ticket.is_training:
                    ticket.abandoned = True
                    self._stop(ticket)
                elif not ticket.listeners:
                    ticket.control.resume()

    def _tickets(self) -> list[Ticket]:
        return [*([self._running] if self._running else []), *self._waiting]

    def _stop(self, ticket: Ticket) -> None:
        ticket.control.stop()
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._send(ticket, events.Failed.of(Cancelled()))

    @staticmethod
    def _send(ticket: Ticket, event: events.Event) -> None:
        line = protocol.encode(protocol.Told(ticket.id, events.to_plain(event)))
        for channel in ticket.listeners:
            channel.send_line(line)
