import threading
import time
from pathlib import Path

import pytest

from core.control import Command, Control
from core.engine import protocol
from core.engine.board import JobBoard, Ticket
from core.engine.listening import Inbox, Patience, Pulse, event_of, listen
from core.errors import EngineError
from core.events import Event, Failed, Note, Result, Started, Warned
from core.jobs import InspectModel, Resume
from core.runs.folder import RunFolder


class FakeChannel:
    """Keeps what is sent; `between` runs when the answer to Follow is sent."""

    def __init__(self) -> None:
        self.messages: list[protocol.Message] = []
        self.between = lambda: None

    def send(self, message: protocol.Message) -> None:
        self.messages.append(message)
        if isinstance(message, protocol.Following):
            self.between()

    def send_line(self, line: bytes) -> None:
        self.messages.append(protocol.decode(line[:-1]))

    def events(self) -> list[Event | EngineError]:
        return [event_of(message) for message in self.messages if isinstance(message, protocol.Told)]


class SlowList(list):
    """Gives other threads a chance to come in between."""

    def append(self, item: object) -> None:
        time.sleep(0.1)
        super().append(item)


def started_run(board: JobBoard, folder: Path, channel: FakeChannel) -> Ticket:
    run = RunFolder(folder)
    ticket = Ticket("1", Resume(folder), [channel])  # type: ignore[list-item]
    board.arrive(channel)  # type: ignore[arg-type]
    board.submit(ticket)
    assert board.take(1) is ticket
    for event in run.record([Started("train", folder)]):
        board.publish(ticket, event)
    return ticket


def test_an_event_between_the_answer_and_the_listening_is_not_lost(tmp_path: Path) -> None:
    board, owner, follower = JobBoard(), FakeChannel(), FakeChannel()
    ticket = started_run(board, tmp_path, owner)
    ticket.listeners = SlowList(ticket.listeners)
    threads = []

    def publish() -> None:
        thread = threading.Thread(target=board.publish, args=(ticket, Note("in between")))
        thread.start()
        threads.append(thread)
        time.sleep(0.1)

    follower.between = publish
    board.follow(follower, tmp_path)  # type: ignore[arg-type]
    threads[0].join()
    size = (tmp_path / "events.jsonl").stat().st_size
    assert follower.messages[0] == protocol.Following("1", size)
    assert follower.events() == [Note("in between")]


def test_only_the_run_that_is_trained_here_can_be_followed(tmp_path: Path) -> None:
    board, owner, other = JobBoard(), FakeChannel(), FakeChannel()
    board.follow(other, tmp_path / "run")  # type: ignore[arg-type]
    started_run(board, tmp_path / "run", owner)
    board.follow(other, tmp_path / "another")  # type: ignore[arg-type]
    board.follow(other, tmp_path / "another" / ".." / "run")  # type: ignore[arg-type]
    assert [type(message) for message in other.messages] == [
        protocol.NotFollowing, protocol.NotFollowing, protocol.Following]


def test_when_the_last_client_goes_training_goes_on_and_short_jobs_are_stopped(tmp_path: Path) -> None:
    board, owner = JobBoard(), FakeChannel()
    training = started_run(board, tmp_path, owner)
    waiting = Ticket("2", InspectModel(""), [owner])  # type: ignore[list-item]
    board.submit(waiting)
    board.tell("1", Command.PAUSE)
    assert training.control.paused
    board.leave(owner)  # type: ignore[arg-type]
    assert not training.control.paused
    assert not training.control.stop_requested
    assert waiting.control.stop_requested
    board.finish(training, Result({}))
    assert board.take(0.01) is None
    assert board.deserted


def test_a_pause_stays_while_another_window_looks_on(tmp_path: Path) -> None:
    board, owner, follower = JobBoard(), FakeChannel(), FakeChannel()
    training = started_run(board, tmp_path, owner)
    board.arrive(follower)  # type: ignore[arg-type]
    board.follow(follower, tmp_path)  # type: ignore[arg-type]
    board.tell("1", Command.PAUSE)
    board.leave(owner)  # type: ignore[arg-type]
    assert training.control.paused
    board.leave(follower)  # type: ignore[arg-type]
    assert not training.control.paused


def listening(training: bool, connected: bool = True) -> tuple[Inbox, Control, list[bool], object]:
    pulse, control, ended = Pulse(), Control(), []
    pulse.connected = connected
    inbox = Inbox(pulse)
    stream = listen(inbox, control, training, Patience(0.3, 0.3), lambda: ended.append(True))
    return inbox, control, ended, stream


def keep_beating(pulse: Pulse, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pulse.beats += 1
        time.sleep(0.02)


def test_a_run_that_computes_for_long_is_not_killed_by_a_stop() -> None:
    inbox, control, ended, stream = listening(training=True)
    control.stop()
    beating = threading.Thread(target=keep_beating, args=(inbox.pulse, 1.5))
    beating.start()
    threading.Timer(1.2, inbox.put, [Result({})]).start()
    assert list(stream) == [Result({})]  # type: ignore[call-overload]
    assert not ended
    beating.join()


@pytest.mark.parametrize("training", [True, False])
def test_one_that_gives_no_sign_of_life_is(training: bool) -> None:
    _, control, ended, stream = listening(training)
    control.stop()
    with pytest.raises(EngineError, match="did not react"):
        list(stream)  # type: ignore[call-overload]
    assert ended == [True]


def test_silence_is_told_once_and_waited_for() -> None:
    inbox, _, ended, stream = listening(training=False)
    threading.Timer(1.5, inbox.put, [Failed("x")]).start()
    assert [type(event) for event in stream] == [Warned, Failed]  # type: ignore[attr-defined]
    assert not ended


def test_a_stop_while_the_engine_starts_cancels_at_once() -> None:
    _, control, ended, stream = listening(training=True, connected=False)
    control.stop()
    (event,) = stream  # type: ignore[misc]
    assert isinstance(event, Failed)
    assert event.cancelled
    assert not ended


def test_an_event_of_another_version_is_an_error_in_words() -> None:
    assert isinstance(event_of(protocol.Told("1", {"event": "FromTheFuture"})), EngineError)
