"""The engine: a process that does the work, one job at a time, for the clients of this machine.

    python -m core.engine.server --role train|work --state-file PATH

It is detached from the window: a killed window does not end a training run. The main thread
computes; every connection has a thread that reads and one that sends, so commands arrive and
heartbeats leave while a job computes.
"""

import argparse
import contextlib
import faulthandler
import hmac
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

from core import jobs
from core.control import Control
from core.engine import protocol
from core.engine.board import JobBoard, Ticket
from core.engine.channel import Channel
from core.errors import EngineError, describe
from core.events import Event, Failed, Result, Warned
from core.runs.folder import RunFolder

DEFAULT_RUNNER = "core.engine.job_table:JobRunner"
_MAX_STRANGERS = 32
_log = logging.getLogger("engine")


class Runner(Protocol):
    """What does the jobs; `core.engine.job_table.JobRunner` is the real one."""

    def __call__(self, job: jobs.Job, control: Control) -> Iterator[Event]:
        """The events of a job."""
        ...

    def warm_up(self, role: str) -> None:
        """Called once, in the thread that computes, when clients can connect already."""
        ...

    def ready(self) -> protocol.Ready:
        """What this machine computes with; asked after the warm-up."""
        ...


class Server:
    """One engine process.

    Args:
        role: "train" or "work".
        runner: does the jobs.
        state_file: the engine's address is written there for the client that started it.
        linger_seconds: with nobody connected and nothing to do, the process ends after this time.
        log: the file that holds this process's output.
    """

    def __init__(self, role: str, runner: Runner, state_file: Path, linger_seconds: float, log: str = "") -> None:
        self._role = role
        self._runner = runner
        self._state_file = state_file
        self._linger_seconds = linger_seconds
        self._board = JobBoard()
        self._quitting = threading.Event()
        self._ready: protocol.Ready | None = None
        self._strangers = threading.BoundedSemaphore(_MAX_STRANGERS)
        self._listener = socket.create_server((protocol.HOST, 0))
        port = self._listener.getsockname()[1]
        self._address = protocol.Address(port, secrets.token_urlsafe(32), os.getpid(), log)

    def serve(self) -> None:
        """Open the door, warm up, and work until told to quit or left alone."""
        self._address.write(self._state_file)
        try:
            threading.Thread(target=self._accept, name="accept", daemon=True).start()
            threading.Thread(target=self._watch, name="watch", daemon=True).start()
            self._warm_up()
            self._work()
        finally:
            self._state_file.unlink(missing_ok=True)
            self._board.say_goodbye()

    def quit(self) -> None:
        """Stop the work, let it save what it has, then end the process."""
        self._quitting.set()
        if self._board.running is None:  # perhaps still importing: there is nothing to save
            self._state_file.unlink(missing_ok=True)
            self._board.say_goodbye()
            os._exit(0)
        self._board.stop_all()

    def _warm_up(self) -> None:
        started, ready = time.monotonic(), protocol.Ready()
        try:
            self._runner.warm_up(self._role)
            ready = self._runner.ready()
        except Exception:  # noqa: BLE001 -- a broken installation: each job says so to the person
            _log.exception("warm-up failed")
        _log.info("warm after %.1f s", time.monotonic() - started)
        self._ready = ready
        self._board.send_to_all(ready)

    def _work(self) -> None:
        deserted_since = time.monotonic()
        while not self._quitting.is_set():
            ticket = self._board.take(min(0.5, self._linger_seconds))
            if ticket is not None:
                self._do(ticket)
            if not self._board.deserted:
                deserted_since = time.monotonic()
            elif time.monotonic() - deserted_since > self._linger_seconds:
                _log.info("nobody is here and there is nothing to do")
                return

    def _do(self, ticket: Ticket) -> None:
        """Run one job to its end. The result is sent when the job has let go of all it held."""
        result: Result | None = None
        _log.info("job %s begins", type(ticket.job).__name__)
        try:
            ticket.control.check()
            for event in self._runner(ticket.job, ticket.control):
                if isinstance(event, Result):
                    result = event
                    continue
                had_run = ticket.run
                self._board.publish(ticket, event)
                if ticket.run is not None and ticket.run is not had_run:
                    self._announce(ticket, ticket.run)
            last = result or Failed.of(EngineError("The job ended without a result."))
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- told to the person; nor may sys.exit end the engine
            _log.exception("job %s failed", type(ticket.job).__name__)
            last = Failed.of(error)
        if ticket.run is not None:
            ticket.run.engine_path.unlink(missing_ok=True)
        if isinstance(last, Failed) and _device_is_lost(last):
            _log.error("the device's state is damaged: a new process is needed")
            self._quitting.set()
            self._board.send_to_all(protocol.Leaving())  # first, so that the next job is not sent here
        self._board.finish(ticket, last)

    def _announce(self, ticket: Ticket, run: RunFolder) -> None:
        """Let windows that are opened later find this run."""
        try:
            self._address.write(run.engine_path)
        except OSError as error:  # the run itself is worth more than being found
            _log.exception("engine.json can not be written")
            warning = Warned("Another window will not be able to attach to this run.", describe(error).message)
            self._board.publish(ticket, warning)

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._strangers.acquire(blocking=False):
                threading.Thread(target=self._attend, args=(connection,), name="client", daemon=True).start()
            else:
                connection.close()

    def _attend(self, connection: socket.socket) -> None:
        """Speak with one client until it goes."""
        channel = Channel(connection, protocol.HEARTBEAT_SECONDS)
        try:
            hello = channel.first_message()
        finally:
            self._strangers.release()
        if not isinstance(hello, protocol.Hello) or not self._knows(hello.token):
            channel.close()
            return
        self._board.arrive(channel)
        try:
            channel.send(protocol.Welcome(os.getpid()))
            if self._ready is not None:
                channel.send(self._ready)
            for message in channel.messages():
                self._obey(message, channel)
        finally:
            self._board.leave(channel)
            channel.close()

    def _knows(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "replace"), self._address.token.encode())

    def _obey(self, message: protocol.Message, channel: Channel) -> None:
        match message:
            case protocol.Submit():
                self._submit(message, channel)
            case protocol.Tell():
                self._board.tell(message.id, message.command)
            case protocol.Follow():
                self._board.follow(channel, message.run_dir)
            case protocol.Quit():
                self.quit()
            case _:
                _log.warning("a client sent %s", type(message).__name__)

    def _submit(self, message: protocol.Submit, channel: Channel) -> None:
        try:
            job = jobs.from_plain(message.job)
        except ValueError as error:
            failure = Failed.of(EngineError("The engine does not understand this job.", details=str(error)))
            self._board.refuse(message.id, channel, failure)
            return
        self._board.submit(Ticket(message.id, job, [channel]))

    def _watch(self) -> None:
        """End the process when a short job that nobody waits for does not stop: no orphan that hangs."""
        abandoned_since: float | None = None
        while True:
            time.sleep(min(1.0, self._linger_seconds))
            ticket = self._board.running
            if ticket is None or not ticket.abandoned:
                abandoned_since = None
            elif abandoned_since is None:
                abandoned_since = time.monotonic()
            elif time.monotonic() - abandoned_since > self._linger_seconds:
                _log.error("an abandoned job does not stop; the stacks of all threads follow")
                faulthandler.dump_traceback(all_threads=True)
                self._state_file.unlink(missing_ok=True)
                os._exit(1)


def _device_is_lost(failure: Failed) -> bool:
    """True after an error that leaves a CUDA context unusable for the rest of the process."""
    return "CUDA error" in failure.details and "out of memory" not in failure.details


def load_runner(path: str) -> Runner:
    """The runner that "module:factory" makes."""
    module, _, factory = path.partition(":")
    return getattr(importlib.import_module(module), factory)()


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser(prog="core.engine.server")
    parser.add_argument("--role", choices=("train", "work"), required=True)
    parser.add_argument("--state-file", type=Path, required=True)
    parser.add_argument("--log-file", default="")
    parser.add_argument("--linger-seconds", type=float, default=60.0)
    parser.add_argument("--runner", default=DEFAULT_RUNNER, help="module:factory of what does the jobs")
    options = parser.parse_args(arguments)
    faulthandler.enable(all_threads=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _log.info("engine for %s, process %d", options.role, os.getpid())
    server = Server(options.role, load_runner(options.runner), options.state_file, options.linger_seconds,
                    options.log_file)
    _on_terminate(server)
    server.serve()
    _log.info("the engine ends")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # not through the teardown of libraries whose threads may still run


def _on_terminate(server: Server) -> None:
    """A polite request to end (shutdown of the system) saves the run first."""

    def terminate(number: int, frame: FrameType | None) -> None:
        # in a thread: the handler interrupts the main thread, which may hold the board
        threading.Thread(target=server.quit, name="quit", daemon=True).start()

    with contextlib.suppress(ValueError):  # not in the main thread (tests)
        signal.signal(signal.SIGTERM, terminate)


if __name__ == "__main__":
    main()
