import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from engine_help import MakeClient, fake_run, lives, posix, run_in_thread, wait_until

from core.control import Control
from core.errors import EngineError
from core.events import CheckpointSaved, Failed, Finished, Note, Progress, Result, Started, StepDone, Warned
from core.jobs import InspectModel
from core.paths import cache_root
from core.runs.folder import RunFolder


def test_start_returns_at_once_and_the_state_tells_how_far_it_is(make_client: MakeClient, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_WARM_UP_SECONDS", "0.3")
    client = make_client()
    assert client.state == "closed"
    before = time.monotonic()
    client.start()
    assert time.monotonic() - before < 0.1
    assert client.state == "starting"
    wait_until(lambda: client.state == "idle")
    client.close(keep_running=False)
    assert client.state == "closed"


def test_jobs_run_one_after_the_other_in_the_same_warm_process(make_client: MakeClient) -> None:
    client = make_client()
    first = list(client.run(InspectModel("count:100"), Control()))
    second = list(client.run(InspectModel("ok"), Control()))
    assert [event.done for event in first if isinstance(event, Progress)] == [0, *range(100)]
    assert isinstance(first[-1], Result)
    assert isinstance(second[-1], Result)
    assert first[-1].values["pid"] == second[-1].values["pid"] == client.pid
    assert client.state == "idle"


def test_text_arrives_as_it_was_sent(make_client: MakeClient) -> None:
    text = 'line\nbreak \u2028 "quoted" <b>日本語</b> \x00'
    events = list(make_client().run(InspectModel(f"text:{text}"), Control()))
    assert events[1] == Note(text)


def test_half_a_surrogate_pair_does_not_end_the_stream(make_client: MakeClient) -> None:
    events = list(make_client().run(InspectModel("text:a\ud800b"), Control()))
    assert events[1] == Note("a?b")


def test_an_exception_becomes_one_failed_event(make_client: MakeClient) -> None:
    client = make_client()
    plain = list(client.run(InspectModel("refuse:The file has no rows."), Control()))[-1]
    assert isinstance(plain, Failed)
    assert (plain.message, plain.hint, plain.cancelled) == ("The file has no rows.", "a hint", False)
    unexpected = list(client.run(InspectModel("raise:secret"), Control()))[-1]
    assert isinstance(unexpected, Failed)
    assert "secret" not in unexpected.message
    assert "ValueError: secret" in unexpected.details
    assert isinstance(list(client.run(InspectModel("sys-exit:"), Control()))[-1], Failed)
    assert isinstance(list(client.run(InspectModel("ok"), Control()))[-1], Result)


@pytest.mark.parametrize(("how", "words"), [
    ("exit:3", "exit code 3"), ("abort", "SIGABRT"), ("segfault", "SIGSEGV"), ("kill", "SIGKILL")])
@posix
def test_a_dying_engine_is_told_with_its_end_and_its_log_and_started_again(
        make_client: MakeClient, how: str, words: str) -> None:
    client = make_client()
    before = time.monotonic()
    with pytest.raises(EngineError) as caught:
        list(client.run(InspectModel(how), Control()))
    assert time.monotonic() - before < 10
    assert words in caught.value.message
    assert "last words of the engine" in caught.value.details
    if how in ("abort", "segfault"):
        assert "fake_jobs.py" in caught.value.details  # faulthandler's stack
    assert client.state == "crashed"
    assert client.error is not None
    assert not list((cache_root() / "engines").iterdir())
    assert isinstance(list(client.run(InspectModel("ok"), Control()))[-1], Result)
    assert client.state == "idle"


@posix
def test_an_engine_killed_while_idle_is_noticed(make_client: MakeClient) -> None:
    changed = threading.Event()
    client = make_client(on_change=changed.set)
    list(client.run(InspectModel("ok"), Control()))
    assert client.pid
    changed.clear()
    os.kill(client.pid, signal.SIGKILL)
    wait_until(lambda: client.state == "crashed")
    assert changed.is_set()


def test_an_engine_that_can_not_start_says_why(make_client: MakeClient) -> None:
    client = make_client(runner="no_such_module:Nothing")
    with pytest.raises(EngineError) as caught:
        list(client.run(InspectModel("ok"), Control()))
    assert "no_such_module" in caught.value.details
    assert client.state == "crashed"


def test_a_lost_device_makes_the_next_job_run_in_a_new_process(make_client: MakeClient) -> None:
    client = make_client()
    failed = list(client.run(InspectModel("cuda:"), Control()))[-1]
    assert isinstance(failed, Failed)
    old = client.pid
    result = list(client.run(InspectModel("ok"), Control()))[-1]
    assert isinstance(result, Result)
    assert result.values["pid"] != old


def test_stop_reaches_the_job_at_once(make_client: MakeClient) -> None:
    client = make_client()
    list(client.run(InspectModel("ok"), Control()))
    control = Control()
    events = client.run(InspectModel("wait:60"), control)
    next(events)
    before = time.monotonic()
    control.stop()
    last = list(events)[-1]
    assert time.monotonic() - before < 0.5
    assert isinstance(last, Failed)
    assert last.cancelled
    assert client.state == "idle"


def test_a_stop_before_the_start_is_not_lost(make_client: MakeClient) -> None:
    control = Control()
    control.stop()
    last = list(make_client().run(InspectModel("wait:60"), control))[-1]
    assert isinstance(last, Failed)
    assert last.cancelled


def test_a_job_that_waits_in_line_can_be_stopped_and_the_others_go_on(make_client: MakeClient) -> None:
    client = make_client()
    first_control, second_control = Control(), Control()
    first, seen_first = run_in_thread(client, InspectModel("wait:60"), first_control)
    wait_until(lambda: seen_first)
    second, seen_second = run_in_thread(client, InspectModel("ok"), second_control)
    third, seen_third = run_in_thread(client, InspectModel("ok"), Control())
    time.sleep(0.1)
    second_control.stop()
    second.join(5)
    assert [type(item) for item in seen_second] == [Failed]
    assert not seen_third
    first_control.stop()
    first.join(5)
    third.join(5)
    assert isinstance(seen_third[-1], Result)


def test_a_generator_that_is_closed_early_stops_its_job(make_client: MakeClient) -> None:
    client = make_client()
    events = client.run(InspectModel("wait:60"), Control())
    next(events)
    events.close()  # type: ignore[attr-defined]
    before = time.monotonic()
    assert isinstance(list(client.run(InspectModel("ok"), Control()))[-1], Result)
    assert time.monotonic() - before < 2


def test_a_short_job_that_ignores_stop_is_ended(make_client: MakeClient) -> None:
    client = make_client()
    control = Control()
    events = client.run(InspectModel("deaf:60"), control)
    next(events)
    pid = client.pid
    assert pid
    control.stop()
    before = time.monotonic()
    with pytest.raises(EngineError, match="did not react to Stop"):
        list(events)
    assert time.monotonic() - before < 5
    assert not lives(pid)


@posix
def test_a_suspended_engine_is_warned_of_once_and_ended_only_after_stop(make_client: MakeClient, tmp_path) -> None:
    client = make_client("train")
    control = Control()
    thread, seen = run_in_thread(client, fake_run(tmp_path / "run", steps=1000, pause=0.02), control)
    wait_until(lambda: len(seen) > 3)
    pid = client.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: any(isinstance(event, Warned) for event in seen))
    time.sleep(2)  # as long again as it took to warn
    assert sum(isinstance(event, Warned) for event in seen) == 1
    assert lives(pid)
    assert thread.is_alive()
    before = time.monotonic()
    control.stop()
    thread.join(10)
    assert time.monotonic() - before < 6
    assert isinstance(seen[-1], EngineError)
    assert not lives(pid)


@posix
def test_a_suspended_engine_that_wakes_up_goes_on(make_client: MakeClient, tmp_path) -> None:
    client = make_client("train")
    thread, seen = run_in_thread(client, fake_run(tmp_path / "run", steps=60, pause=0.02), Control())
    wait_until(lambda: len(seen) > 3)
    assert client.pid
    os.kill(client.pid, signal.SIGSTOP)
    wait_until(lambda: any(isinstance(event, Warned) for event in seen))
    os.kill(client.pid, signal.SIGCONT)
    thread.join(10)
    assert isinstance(seen[-1], Result)
    assert [event.step for event in seen if isinstance(event, StepDone)] == list(range(1, 61))


def test_kill_ends_the_child_and_the_job_that_runs(make_client: MakeClient) -> None:
    client = make_client()
    thread, seen = run_in_thread(client, InspectModel("deaf:60"), Control())
    wait_until(lambda: seen)
    pid = client.pid
    assert pid
    client.kill()
    thread.join(5)
    assert isinstance(seen[-1], EngineError)
    assert "was ended" in seen[-1].message
    assert not lives(pid)


def test_kill_right_after_start_leaves_no_process(make_client: MakeClient) -> None:
    client = make_client()
    client.start()
    client.kill()
    assert client.state == "closed"
    assert client.pid is None or not lives(client.pid)


def test_close_stops_a_run_and_waits_until_it_has_saved(make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client("train")
    thread, seen = run_in_thread(client, fake_run(tmp_path / "run", steps=10000, pause=0.02), Control())
    wait_until(lambda: len(seen) > 3)
    pid = client.pid
    assert pid
    client.close(keep_running=False)
    assert not lives(pid)
    thread.join(5)
    assert isinstance(seen[-1], Result)
    assert Finished("stopped", tmp_path / "run" / "adapter") in seen
    assert RunFolder(tmp_path / "run").state() == "stopped"


def test_checkpoint_pause_and_resume_reach_a_run(make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client("train")
    control = Control()
    thread, seen = run_in_thread(client, fake_run(tmp_path / "run", steps=10000, pause=0.005), control)
    wait_until(lambda: len(seen) > 3)
    control.checkpoint()
    wait_until(lambda: any(isinstance(event, CheckpointSaved) for event in seen))
    control.pause()
    time.sleep(0.2)
    count = len(seen)
    time.sleep(0.3)
    assert len(seen) == count
    control.resume()
    wait_until(lambda: len(seen) > count)
    control.stop()
    thread.join(5)
    assert isinstance(seen[-1], Result)


def test_the_second_client_on_one_run_folder_is_refused(make_client: MakeClient, tmp_path: Path) -> None:
    first, second = make_client("train"), make_client("train")
    control = Control()
    thread, seen = run_in_thread(first, fake_run(tmp_path / "run", steps=10000, pause=0.01), control)
    wait_until(lambda: len(seen) > 3)
    refused = list(second.run(fake_run(tmp_path / "run", steps=1), Control()))
    assert len(refused) == 1
    assert isinstance(refused[0], Failed)
    assert "another program" in refused[0].message
    control.stop()
    thread.join(5)
    assert isinstance(seen[-1], Result)
    assert sum(isinstance(event, Started) for event in RunFolder(tmp_path / "run").read_events()) == 1


def test_numbers_that_are_not_finite_arrive(make_client: MakeClient, tmp_path: Path) -> None:
    events = list(make_client("train").run(fake_run(tmp_path / "run", steps=2, loss="nan"), Control()))
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    assert len(losses) == 2
    assert all(loss != loss for loss in losses)


@posix
def test_it_works_from_any_folder_with_closed_standard_streams(make_client: MakeClient, tmp_path: Path) -> None:
    """A window started from a menu has no stdin; a file torch.py beside the person's data is not imported."""
    (tmp_path / "torch.py").write_text("raise SystemExit('imported from the working folder')")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from core.control import Control\nfrom core.engine.client import EngineClient\n"
        "from core.jobs import InspectModel\n"
        "client = EngineClient('work', runner='fake_jobs:FakeRunner')\n"
        "last = list(client.run(InspectModel('ok'), Control()))[-1]\n"
        "client.close(keep_running=False)\n"
        "Path('answer').write_text(last.values['cwd'] + chr(10) + chr(10).join(last.values['path']))\n")
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ['PYTHONPATH']}"}
    done = subprocess.run(["sh", "-c", 'exec "$0" "$1" <&- >&- 2>&-', sys.executable, str(script)],
                          cwd=tmp_path, env=environment, timeout=30, check=False)
    assert done.returncode == 0
    cwd, *path = (tmp_path / "answer").read_text().splitlines()
    assert Path(cwd) == tmp_path
    assert str(tmp_path) not in path
    assert "" not in path


def test_the_engine_keeps_its_logs_private_and_few(make_client: MakeClient, tmp_path: Path) -> None:
    logs = tmp_path / "home" / "logs"
    logs.mkdir(parents=True)
    for number in range(30):
        (logs / f"engine-{'work' if number % 2 else 'train'}-20200101-0000{number:02}-abc.log").write_text("old")
    client = make_client()
    list(client.run(InspectModel("ok"), Control()))
    found = sorted(logs.glob("engine-*.log"), key=lambda path: path.name.split("-", 2)[-1])
    assert len(found) == 21
    assert found[0].name == "engine-train-20200101-000010-abc.log"
    if os.name != "nt":
        assert found[-1].stat().st_mode & 0o777 == 0o600


def test_the_light_face_imports_no_torch() -> None:
    code = ("import sys, core.engine.client, core.runs.history\n"
            "assert not {'torch', 'transformers', 'PySide6'} & set(sys.modules), 'heavy'")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=30)
