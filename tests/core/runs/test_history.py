import os
import time
from pathlib import Path

import pytest

from core import events
from core.config import DataConfig, LoraConfig, ModelConfig, RunConfig, TrainingConfig
from core.errors import CoreError
from core.events import Evaluated, Failed, Finished, Planned, Progress, Result, Started, StepDone
from core.runs import history
from core.runs.folder import RunFolder
from core.runs.history import config_difference, list_runs, rename_run, require_idle, summarise

CONFIG = RunConfig(model=ModelConfig(path="/models/tiny"), adapter=LoraConfig(rank=4, alpha=12.0))
PLANNED = Planned(100, 90, 10, 1234, 99999, 5000, "cpu", "fp32", False)


def step(number: int, loss: float = 1.0) -> StepDone:
    return StepDone(number, number / 100, loss, 1e-3, 0.5, 10, 5, 2.0, 1000)


def make_run(folder: Path, *stream: events.Event, config: RunConfig = CONFIG) -> RunFolder:
    run = RunFolder(folder)
    run.write_config(config)
    if stream:
        run.events_path.write_text("".join(events.to_json(event) + "\n" for event in stream))
    return run


def start(when: float = 1000.0) -> Started:
    return Started("Train", None, when, 1)


def test_a_finished_run_tells_everything(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", start(), Progress("Preparing", 1, 2), PLANNED, step(1, 3.0), Evaluated(1, 2.5, 10, 0.1, True),
        step(2, 2.0), Evaluated(2, 1.5, 10, 0.1, True), step(3, 1.0), Evaluated(3, 1.75, 10, 0.1, False),
        Finished("finished", tmp_path), Result({"train_seconds": 12.5}))
    (run.path / "adapter").mkdir()
    (run.path / "adapter" / "weights").write_bytes(b"x" * 5000)
    summary = summarise(run)
    assert (summary.name, summary.state, summary.folder) == ("run", "finished", run.path)
    assert (summary.started, summary.seconds) == (1000.0, 12.5)
    assert (summary.model, summary.method, summary.rank, summary.alpha) == ("tiny", "lora", 4, 12.0)
    assert (summary.steps_done, summary.steps_total, summary.trainable_parameters) == (3, 100, 1234)
    assert (summary.last_loss, summary.best_validation_loss) == (1.0, 1.5)
    assert summary.bytes > 5000


def test_states_are_those_of_the_run_folder(tmp_path: Path) -> None:
    cases: dict[str, tuple[events.Event, ...]] = {
        "new": (),
        "interrupted": (start(), PLANNED, step(1)),
        "failed": (start(), step(1), Failed("The disk is full.")),
        "stopped": (start(), step(1), Finished("stopped", tmp_path), Result({})),
        "finished": (start(), Failed("once"), start(2000.0), Finished("finished", tmp_path), Result({}))}
    for state, stream in cases.items():
        run = make_run(tmp_path / state, *stream)
        assert summarise(run).state == run.state() == state
    cancelled = make_run(tmp_path / "cancelled", start(), Failed("Cancelled.", cancelled=True))
    assert summarise(cancelled).state == cancelled.state() == "stopped"
    assert summarise(RunFolder(tmp_path / "failed")).problem == "The disk is full."


def test_a_run_that_is_being_trained_is_running_and_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", start(time.time() - 60), PLANNED, step(1))
    with run.locked():
        summary = summarise(run)
        assert summary.state == "running"
        assert summary.seconds == pytest.approx(60, abs=5)
        with pytest.raises(CoreError, match="being trained"):
            rename_run(run, "other")
        with pytest.raises(CoreError, match="deleted"):
            require_idle(run, "deleted")
    assert rename_run(run, "other").path == tmp_path / "other"


def test_the_time_of_a_resumed_run_leaves_out_the_time_between(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", start(1000.0), PLANNED, step(1), step(2), start(900000.0), PLANNED, step(3),
                   Finished("finished", tmp_path), Result({"train_seconds": 7.0}))
    summary = summarise(run)
    assert (summary.started, summary.seconds) == (1000.0, 4.0 + 7.0)


def test_not_finite_losses_are_listed(tmp_path: Path) -> None:
    summary = summarise(make_run(tmp_path / "run", start(), PLANNED, step(1, float("nan"))))
    assert summary.last_loss is not None
    assert summary.last_loss != summary.last_loss


def test_text_that_looks_like_an_event_is_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", start(), PLANNED, step(1, 5.0),
                   events.Note('{"event": "StepDone", "loss": 0.0}\n{"event": "Finished"'))
    assert (summarise(run).last_loss, summarise(run).state) == (5.0, "interrupted")


def test_damaged_folders_are_listed_as_damaged(tmp_path: Path) -> None:
    make_run(tmp_path / "good", start(), step(1))
    (make_run(tmp_path / "bad toml", start()).config_path).write_text("rank = [")
    (make_run(tmp_path / "bad field", start()).config_path).write_text("[adapter]\nrank = -1\n")
    (make_run(tmp_path / "bad log").events_path).write_bytes(b"\x00\xff{}\n[[[[\n" * 10)
    (make_run(tmp_path / "no toml", start()).config_path).unlink()
    (tmp_path / "folder for toml" / "run.toml").mkdir(parents=True)
    make_run(tmp_path / "folder for log").events_path.mkdir()
    if os.name != "nt":
        os.mkfifo(make_run(tmp_path / "pipe").events_path)
    found = {summary.name: summary for summary in list_runs(tmp_path)}
    assert found.pop("good").state == "interrupted"
    assert len(found) == (7 if os.name != "nt" else 6)
    for summary in found.values():
        assert summary.state == "damaged", summary
        assert summary.problem
        assert "\n" not in summary.problem


def test_what_is_no_run_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".run.tmp" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("x")
    assert list_runs(tmp_path) == []
    assert list_runs(tmp_path / "missing") == []
    assert list_runs(tmp_path, [tmp_path / "missing" / "run"]) == []


def test_a_torn_or_damaged_last_line_hides_only_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", start(), PLANNED, step(1, 3.0), step(2, 2.0))
    whole = run.events_path.read_bytes()
    run.events_path.write_bytes(whole[:-20])
    assert (summarise(run).steps_done, summarise(run).last_loss) == (1, 3.0)
    run.events_path.write_bytes(whole + b'{"event": "StepDone", "step": "many"}\n')
    assert summarise(run).steps_done == 2


def test_the_newest_run_comes_first(tmp_path: Path) -> None:
    for when in (3000.0, 1000.0, 2000.0):
        make_run(tmp_path / f"run-{when:.0f}", start(when), step(1))
    assert [summary.started for summary in list_runs(tmp_path)] == [3000.0, 2000.0, 1000.0]


def test_a_log_that_grows_is_read_again_and_one_that_does_not_is_not(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", start(), PLANNED, step(1))
    assert summarise(run).steps_done == 1
    monkeypatch.setattr(history, "_facts", lambda log: pytest.fail("read again"))
    assert summarise(run).steps_done == 1
    monkeypatch.undo()
    with open(run.events_path, "a") as log:
        log.write(events.to_json(step(2)) + "\n")
    assert summarise(run).steps_done == 2


def test_hundreds_of_long_runs_are_listed_quickly(tmp_path: Path) -> None:
    lines = [events.to_json(event) for event in
             (start(), PLANNED, *(step(number) for number in range(1, 1001)), Finished("finished", tmp_path))]
    for number in range(200):
        make_run(tmp_path / f"run-{number}").events_path.write_text("\n".join(lines) + "\n")
    before = time.process_time()
    assert len(list_runs(tmp_path)) == 200
    first = time.process_time() - before
    before = time.process_time()
    list_runs(tmp_path)
    assert first < 2.0
    assert time.process_time() - before < 0.3


def test_only_the_ends_of_a_huge_log_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_MOST_LOG_BYTES", 20000)
    monkeypatch.setattr(history, "_HEAD_BYTES", 2000)
    run = make_run(tmp_path / "run", start(), PLANNED, *(step(number) for number in range(1, 1001)),
                   Evaluated(1000, 0.5, 1, 0.1, True))
    summary = summarise(run)
    assert (summary.started, summary.steps_done, summary.steps_total) == (1000.0, 1000, 100)
    assert summary.best_validation_loss == 0.5


@pytest.mark.parametrize("name", ["", "..", "con", "///", " . "])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", start())
    with pytest.raises(CoreError):
        rename_run(run, name)
    assert run.path.exists()


def test_renaming_keeps_inside_the_runs_and_never_overwrites(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "run", start())
    make_run(tmp_path / "runs" / "taken", start(2000.0))
    with pytest.raises(CoreError, match="already"):
        rename_run(run, "taken")
    renamed = rename_run(run, "../../up and away")
    assert renamed.path.parent == tmp_path / "runs"
    assert not run.path.exists()
    assert rename_run(renamed, renamed.path.name) == renamed


def test_the_difference_of_two_configs_names_each_field(tmp_path: Path) -> None:
    other = RunConfig(model=CONFIG.model, adapter=LoraConfig(rank=16, alpha=12.0, target_modules=("q_proj",)),
                      training=TrainingConfig(learning_rate=1e-3), data=DataConfig(train=("a.jsonl",)))
    assert config_difference(CONFIG, CONFIG) == []
    assert config_difference(CONFIG, other) == [
        ("data.train", (), ("a.jsonl",)), ("adapter.target_modules", "all-linear", ("q_proj",)),
        ("adapter.rank", 4, 16), ("training.learning_rate", 2e-4, 1e-3)]
