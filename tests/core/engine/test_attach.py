import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from engine_help import MakeClient, fake_run, lives, posix, run_in_thread, wait_until

from core.control import Control
from core.engine import protocol
from core.engine.client import Patience, attach
from core.errors import EngineError
from core.events import CheckpointSaved, Event, Finished, Result, StepDone
from core.runs.folder import RunFolder


def attach_in_thread(run: RunFolder, control: Control | None = None) -> tuple[threading.Thread, list]:
    seen: list = []

    def follow() -> None:
        try:
            for event in attach(run, control or Control(), Patience(1.5, 1.0)):
                seen.append(event)
        except EngineError as error:
            seen.append(error)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    return thread, seen


def test_many_that_attach_to_a_fast_run_see_every_event_once(make_client: MakeClient, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    owner, seen = run_in_thread(make_client("train"), fake_run(run.path, steps=1200, pause=0.001), Control())
    wait_until(run.engine_path.exists)
    followers = []
    while owner.is_alive() and len(followers) < 25:
        followers.append(attach_in_thread(run))
        time.sleep(0.05)
    owner.join(60)
    for thread, _ in followers:
        thread.join(20)
    whole = list(run.read_events())
    assert seen == whole
    assert len(whole) == 1203
    attached = [events for _, events in followers if not isinstance(events[-1], EngineError)]
    assert len(attached) >= 10
    for events in attached:
        assert events == whole


def test_the_address_is_private_and_gone_after_the_run(make_client: MakeClient, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    control = Control()
    owner, _ = run_in_thread(make_client("train"), fake_run(run.path, steps=10000, pause=0.01), control)
    wait_until(run.engine_path.exists)
    if os.name != "nt":
        assert run.engine_path.stat().st_mode & 0o777 == 0o600
    control.stop()
    owner.join(5)
    assert not run.engine_path.exists()
    assert run.state() == "stopped"  # the lock is free when the result arrives
    with pytest.raises(EngineError, match="not being trained"):
        list(attach(run, Control()))


def test_commands_of_an_attached_window_reach_the_run(make_client: MakeClient, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    owner, seen = run_in_thread(make_client("train"), fake_run(run.path, steps=10000, pause=0.01), Control())
    wait_until(run.engine_path.exists)
    control = Control()
    thread, attached = attach_in_thread(run, control)
    wait_until(lambda: len(attached) > 3)
    control.checkpoint()
    wait_until(lambda: any(isinstance(event, CheckpointSaved) for event in attached))
    control.stop()
    thread.join(5)
    owner.join(5)
    assert isinstance(attached[-1], Result)
    assert attached == seen


WINDOW = """
import sys, time
from pathlib import Path
from core.config import ModelConfig, RunConfig
from core.control import Control
from core.engine.client import EngineClient
from core.jobs import InspectModel, Train
client = EngineClient("train", runner="fake_jobs:FakeRunner", linger_seconds=1.0)
if sys.argv[1] == "run":
    job = Train(RunConfig(model=ModelConfig(path=sys.argv[2])), Path(sys.argv[3]))
else:
    job = InspectModel(sys.argv[2])
control = Control()
for number, event in enumerate(client.run(job, control)):
    print(client.pid, flush=True)
    if number == 3 and sys.argv[4:] == ["pause"]:
        control.pause()
"""


def start_window(*arguments: str) -> tuple[subprocess.Popen, int]:
    """Another program with an engine of its own; returns it and the engine's process id."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ['PYTHONPATH']}"}
    window = subprocess.Popen([sys.executable, "-c", WINDOW, *arguments], stdout=subprocess.PIPE, text=True,
                              env=environment)
    assert window.stdout
    return window, int(window.stdout.readline())


def kill_window(window: subprocess.Popen) -> None:
    window.kill()
    window.communicate()


def test_a_run_survives_its_killed_window_and_another_one_attaches(make_client: MakeClient, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    window, engine = start_window("run", "steps=10000,pause=0.01", str(run.path))
    wait_until(run.engine_path.exists)
    kill_window(window)
    time.sleep(1.5)  # longer than an idle engine stays
    assert lives(engine)
    assert run.state() == "running"
    control = Control()
    thread, seen = attach_in_thread(run, control)
    wait_until(lambda: len(seen) > 100)
    control.stop()
    thread.join(5)
    assert Finished("stopped", run.adapter) in seen
    steps = [event.step for event in seen if isinstance(event, StepDone)]
    assert steps == list(range(1, len(steps) + 1))
    wait_until(lambda: not lives(engine), 10)  # nobody is left and nothing to do


def test_a_paused_run_goes_on_when_its_last_window_goes(make_client: MakeClient, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    window, engine = start_window("run", "steps=40,pause=0.005", str(run.path), "pause")
    wait_until(run.engine_path.exists)
    time.sleep(0.7)
    assert run.state() == "running"
    kill_window(window)
    wait_until(lambda: run.state() == "finished", 10)
    wait_until(lambda: not lives(engine), 10)


@pytest.mark.parametrize("job", ["wait:60", "deaf:60"])
def test_a_short_job_ends_with_its_window(make_client: MakeClient, job: str) -> None:
    """The one that does not obey, too: no orphan is left."""
    window, engine = start_window("short", job)
    kill_window(window)
    wait_until(lambda: not lives(engine), 15)


def test_letting_go_of_a_run_leaves_it_running(make_client: MakeClient, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    client = make_client("train", linger_seconds=0.5)
    thread, seen = run_in_thread(client, fake_run(run.path, steps=10000, pause=0.01), Control())
    wait_until(lambda: len(seen) > 3)
    engine = client.pid
    assert engine
    client.close(keep_running=True)
    thread.join(5)
    assert isinstance(seen[-1], EngineError)
    assert client.state == "closed"
    control = Control()
    follower, events = attach_in_thread(run, control)
    wait_until(lambda: len(events) > len(seen))
    control.stop()
    follower.join(5)
    assert isinstance(events[-1], Result)
    wait_until(lambda: not lives(engine), 10)


@posix
def test_those_attached_are_told_when_the_engine_dies(make_client: MakeClient, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    client = make_client("train")
    owner, seen = run_in_thread(client, fake_run(run.path, steps=10000, pause=0.01), Control())
    wait_until(run.engine_path.exists)
    thread, attached = attach_in_thread(run)
    wait_until(lambda: len(attached) > 3)
    assert client.pid
    os.kill(client.pid, signal.SIGKILL)
    thread.join(5)
    owner.join(5)
    assert isinstance(attached[-1], EngineError)
    assert isinstance(seen[-1], EngineError)
    assert run.engine_path.exists()  # nobody could remove it
    assert run.state() == "interrupted"
    with pytest.raises(EngineError, match="not being trained"):
        list(attach(run, Control()))


@posix
def test_an_attached_window_can_end_an_engine_that_hangs(make_client: MakeClient, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    client = make_client("train")
    run_in_thread(client, fake_run(run.path, steps=10000, pause=0.01), Control())
    wait_until(run.engine_path.exists)
    control = Control()
    thread, attached = attach_in_thread(run, control)
    wait_until(lambda: len(attached) > 3)
    engine = client.pid
    assert engine
    os.kill(engine, signal.SIGSTOP)
    control.stop()
    thread.join(10)
    assert isinstance(attached[-1], EngineError)
    wait_until(lambda: not lives(engine))


def test_a_stale_address_that_somebody_else_uses_now_is_no_engine(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x" * 10000, json.dumps({"type": "Beat"}).encode() + b"\n"):
        with socket.create_server((protocol.HOST, 0)) as listener:
            protocol.Address(listener.getsockname()[1], "token", 1).write(run.engine_path)

            def reply(listener: socket.socket = listener, answer: bytes = answer) -> None:
                connection, _ = listener.accept()
                connection.recv(1000)
                connection.sendall(answer)
                connection.close()

            threading.Thread(target=reply, daemon=True).start()
            with pytest.raises(EngineError, match="not being trained"):
                list(attach(run, Control()))
    run.engine_path.write_text("{damaged")
    with pytest.raises(EngineError, match="damaged"):
        list(attach(run, Control()))


def test_a_window_that_reads_nothing_does_not_hold_up_the_run(make_client: MakeClient, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    owner, seen = run_in_thread(make_client("train"), fake_run(run.path, steps=300, note=50000), Control())
    wait_until(run.engine_path.exists)
    address = protocol.Address.read(run.engine_path)
    with socket.create_connection((protocol.HOST, address.port)) as sleeper:
        sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sleeper.sendall(protocol.encode(protocol.Hello(address.token)) + protocol.encode(protocol.Follow(run.path)))
        owner.join(60)
        assert isinstance(seen[-1], Result)
    steps: list[Event] = [event for event in seen if isinstance(event, StepDone)]
    assert len(steps) == 300
