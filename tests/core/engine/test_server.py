import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from engine_help import MakeClient, fake_run, lives, posix, run_in_thread, wait_until

from core.control import Command, Control
from core.engine import protocol
from core.engine.channel import Channel, connect
from core.engine.child import Child, exit_words, tail
from core.engine.protocol import Address, Follow, Hello, NotFollowing, Ready, Submit, Tell, Told, Welcome
from core.events import Result
from core.jobs import InspectModel, to_plain
from core.paths import cache_root
from core.runs.folder import RunFolder


@pytest.fixture
def engine(make_client: MakeClient):
    """A child without a client; ends after a second alone."""
    child = Child("work", "fake_jobs:FakeRunner", 1.0)
    yield child, child.wait_for_address(30)
    child.kill()


def drain(connection: socket.socket) -> bytes:
    connection.settimeout(8)
    received = b""
    try:
        while chunk := connection.recv(4096):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def test_the_address_file_is_private_and_goes_with_the_process(make_client: MakeClient, tmp_path: Path) -> None:
    child = Child("work", "fake_jobs:FakeRunner", 0.3)
    child.wait_for_address(30)
    found = list((tmp_path / "home" / "cache" / "engines").glob("*.json"))
    assert len(found) == 1
    values = json.loads(found[0].read_text())
    assert {"port", "token", "pid"} <= set(values)
    assert values["pid"] == child.pid
    if os.name != "nt":
        assert found[0].stat().st_mode & 0o777 == 0o600
    assert child.wait(10)  # nobody came
    assert not found[0].exists()


@pytest.mark.parametrize("line", [
    b'{"type": "Hello", "token": "wrong"}\n', b'{"type": "Hello"}\n', b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff\n",
    b"[" * 4000 + b"\n", b"x" * 5000, b'{"type": "Quit"}\n', "{\"type\": \"Hello\", \"token\": \"ü\"}\n".encode()])
def test_a_stranger_is_dropped_without_an_answer(engine, line: bytes) -> None:
    child, address = engine
    with socket.create_connection((protocol.HOST, address.port)) as stranger:
        stranger.sendall(line)
        before = time.monotonic()
        assert drain(stranger) == b""
        assert time.monotonic() - before < 2
    assert child.is_alive()


def test_a_stranger_who_says_nothing_is_dropped_and_many_of_them_do_no_harm(make_client: MakeClient) -> None:
    client = make_client()
    client.start()
    wait_until(lambda: client.state == "idle")
    assert client.pid
    address = next(Address.read(path) for path in (cache_root() / "engines").glob("*.json"))
    strangers = [socket.create_connection((protocol.HOST, address.port)) for _ in range(40)]
    assert drain(strangers[0]) == b""
    wait_until(lambda: _can_connect(address), 10)
    for stranger in strangers:
        stranger.close()


def _can_connect(address: Address) -> bool:
    try:
        connect(address)[0].close()
    except OSError:
        return False
    return True


def test_it_ends_when_it_is_alone_and_stays_while_somebody_is_connected(engine) -> None:
    child, address = engine
    channel, welcome = connect(address)
    assert welcome.pid == child.pid
    assert not child.wait(2.5)
    channel.close()
    before = time.monotonic()
    assert child.wait(5)
    assert time.monotonic() - before > 0.5


def test_an_unknown_job_is_refused_and_the_next_one_done(engine) -> None:
    _, address = engine
    channel, _ = connect(address)
    channel.send(Submit("1", {"job": "Nonsense"}))
    channel.send(Submit("2", {"job": "Export", "to": 3}))
    channel.send(Tell("no such job", Command.STOP))
    channel.send(Follow(Path("nowhere")))
    channel.send(Submit("3", to_plain(InspectModel("ok"))))
    answers = []
    for message in channel.messages():
        if isinstance(message, Told | NotFollowing):
            answers.append(message)
        if isinstance(message, Told) and message.event["event"] == "Result":
            break
    assert [(a.id, a.event["event"]) if isinstance(a, Told) else "not" for a in answers] == [
        ("1", "Failed"), ("2", "Failed"), "not", ("3", "Progress"), ("3", "Result")]
    channel.close()


def test_a_heartbeat_comes_every_second_also_while_a_job_computes(engine) -> None:
    _, address = engine
    channel, _ = connect(address)
    channel.send(Submit("1", to_plain(InspectModel("deaf:2.5"))))
    beats = 0
    for message in channel.messages():
        beats += isinstance(message, protocol.Beat)
        if isinstance(message, Told) and message.event["event"] == "Result":
            break
    assert beats >= 2
    channel.close()


@posix
def test_a_polite_request_to_end_saves_the_run(make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client("train")
    run = RunFolder(tmp_path / "run")
    thread, seen = run_in_thread(client, fake_run(run.path, steps=10000, pause=0.01), Control())
    wait_until(lambda: len(seen) > 3)
    engine = client.pid
    assert engine
    os.kill(engine, signal.SIGTERM)
    thread.join(5)
    assert isinstance(seen[-1], Result)
    assert run.state() == "stopped"
    wait_until(lambda: not lives(engine))
    wait_until(lambda: client.state == "closed")


def test_messages_survive_the_way() -> None:
    for message in (Hello("t"), Submit("1", {"job": "Unload"}), Tell("1", Command.PAUSE), Follow(Path("a/b")),
                    Welcome(1), Ready(), Told("1", {"event": "Note", "message": "\u2028é"}),
                    protocol.Following("1", 10), NotFollowing(), protocol.Leaving(), protocol.Quit()):
        line = protocol.encode(message)
        assert line.count(b"\n") == 1
        assert protocol.decode(line[:-1]) == message


@pytest.mark.parametrize("line", [b"", b"1", b"[]", b"{}", b'{"type": 3}', b'{"type": "Tell", "id": "1"}', b"\xff",
                                  b'{"type": "Tell", "id": "1", "command": "explode"}', b"[" * 100000])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        protocol.decode(line)


def test_a_channel_drops_a_peer_that_is_too_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_QUEUED_BYTES", 1_000_000)
    near, far = socket.socketpair()
    near = _as_tcp(near)
    channel = Channel(near)
    line = protocol.encode(Told("1", {"text": "x" * 10000}))
    before = time.monotonic()
    for _ in range(1000):
        channel.send_line(line)
    assert time.monotonic() - before < 1
    assert list(channel.messages()) == []  # it has hung up
    channel.close()
    far.close()


def test_a_line_without_end_is_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_LINE_BYTES", 1000)
    near, far = socket.socketpair()
    channel = Channel(_as_tcp(near))
    far.sendall(protocol.encode(Ready()) + b"x" * 2000)
    assert list(channel.messages()) == [Ready()]
    channel.close()
    far.close()


def _as_tcp(connection: socket.socket) -> socket.socket:
    class WithoutOptions(socket.socket):
        def setsockopt(self, *arguments: object) -> None:
            """A socket pair has no TCP_NODELAY."""

    return WithoutOptions(fileno=connection.detach())


def test_exit_codes_in_words() -> None:
    assert exit_words(3) == "exit code 3"
    assert exit_words(0xC0000005) == "exit code 0xC0000005"
    if os.name != "nt":
        assert exit_words(-9) == "signal 9, SIGKILL"
        assert exit_words(-99) == "signal 99"


def test_the_tail_of_a_log_is_bounded_and_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100000)))
    end = tail(log, 100)
    assert len(end) <= 100
    assert end.startswith("line ")
    assert end.endswith("line 99999\n")
    assert "can not be read" in tail(tmp_path / "none")
