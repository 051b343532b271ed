"""The draft looks at model and data, keeps its problems, and can be undone."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fake_engine import FakeClient, make_card, make_scan
from pytestqt.qtbot import QtBot

from app.draft import Draft
from app.operations import Operations
from core import events, jobs
from core.config import RunConfig, parse_config
from core.control import Control
from core.engine.protocol import Ready


def fields(draft: Draft) -> list[str]:
    return [problem.field for problem in draft.problems]


def make_draft(operations: Operations) -> Draft:
    return Draft(operations, debounce_ms=1)


def test_a_chosen_model_and_data_are_looked_at_once(
        operations: Operations, engines: tuple[FakeClient, FakeClient], data_file: Path, qtbot: QtBot) -> None:
    draft = make_draft(operations)
    assert fields(draft) == ["model.path", "data.train"] and not draft.ready
    draft.set_value("model.path", "starter")
    draft.set_value("data.train", (str(data_file),))
    qtbot.waitUntil(lambda: draft.ready)
    assert engines[1].kinds() == ["PrepareStarter", "InspectModel", "ScanData"]
    assert draft.card is not None and draft.scan is not None
    draft.set_value("adapter.rank", 4)  # concerns neither of them
    qtbot.wait(30)
    assert draft.ready and len(engines[1].jobs) == 3
    draft.set_value("data.max_length", 64)
    assert not draft.ready and draft.scan is None
    qtbot.waitUntil(lambda: draft.ready)
    assert engines[1].kinds()[3:] == ["ScanData"]


def test_a_model_that_is_refused_is_a_problem_at_its_field(
        operations: Operations, engines: tuple[FakeClient, FakeClient], data_file: Path, qtbot: QtBot) -> None:
    draft = make_draft(operations)
    engines[1].answers[jobs.InspectModel] = [events.Failed("It has only pickle files.", "Convert it.")]
    draft.set_values({"model.path": "bad", "data.train": (str(data_file),)})
    qtbot.waitUntil(lambda: fields(draft) == ["model.path"])
    assert draft.problems[0].message == "It has only pickle files." and not draft.ready
    engines[1].answers[jobs.InspectModel] = [events.ModelInspected(make_card())]
    draft.set_value("model.path", "good")
    qtbot.waitUntil(lambda: draft.ready)


def test_a_file_that_can_not_be_read_is_a_problem_at_the_data(
        operations: Operations, engines: tuple[FakeClient, FakeClient], data_file: Path, qtbot: QtBot) -> None:
    draft = make_draft(operations)
    engines[1].answers[jobs.ScanData] = [events.Failed("train.jsonl, line 3: not JSON.")]
    draft.set_values({"model.path": "m", "data.train": (str(data_file),)})
    qtbot.waitUntil(lambda: fields(draft) == ["data.train"])
    assert "line 3" in draft.problems[0].message


def test_values_out_of_their_limits_change_nothing_and_are_told(operations: Operations) -> None:
    draft = make_draft(operations)
    assert not draft.set_value("adapter.alpha", 0.0)
    assert "adapter.alpha" in fields(draft) and draft.config == RunConfig()
    assert draft.problems[0].message == "Alpha must be more than 0." and draft.refused == {"adapter.alpha"}
    assert not draft.set_value("adapter.target_modules", ())
    assert "adapter.target_modules" in fields(draft)
    draft.set_error("adapter.last_layer", "This is not a number.")
    assert draft.set_value("adapter.alpha", 4.0) and draft.set_value("adapter.target_modules", "q-v")
    assert draft.set_value("adapter.last_layer", None)
    assert fields(draft) == ["model.path", "data.train"]


def test_changes_are_undone_and_typing_is_one_step(operations: Operations) -> None:
    draft = make_draft(operations)
    for rank in (1, 12, 128):  # as it is typed
        draft.set_value("adapter.rank", rank)
    draft.set_value("training.epochs", 2.0)
    assert draft.undo_stack.count() == 2
    draft.undo_stack.undo()
    draft.undo_stack.undo()
    assert draft.config == RunConfig()
    draft.undo_stack.redo()
    assert draft.value("adapter.rank") == 128


def test_a_whole_config_is_taken_over(operations: Operations) -> None:
    draft = make_draft(operations)
    draft.set_value("adapter.alpha", 0.0)
    seen: list[Any] = []
    draft.name_changed.connect(seen.append)
    draft.replace(parse_config({"adapter": {"rank": 3}}), "third")
    assert (draft.value("adapter.rank"), draft.name, seen) == (3, "third", ["third"])
    assert draft.undo_stack.count() == 0 and "adapter.alpha" not in fields(draft)


def test_a_device_that_this_machine_lacks_is_a_problem_at_its_field(
        operations: Operations, engines: tuple[FakeClient, FakeClient], data_file: Path) -> None:
    draft = make_draft(operations)
    draft.set_values({"model.path": "m", "data.train": (str(data_file),), "training.device": "cuda:1"})
    assert not draft.problems_of("training")  # nothing is known of the machine yet
    engines[0].hardware = Ready(devices={"cuda:0": 80 * 10**9, "cpu": 10**9})
    operations.changed.emit()
    assert [(problem.field, problem.message, problem.hint) for problem in draft.problems_of("training")] == [
        ("training.device", "This machine has no device cuda:1.", "It has: cuda:0, cpu.")]
    draft.set_value("training.device", "cuda")
    assert not draft.problems_of("training")


def test_an_answer_about_data_that_was_taken_away_is_not_shown(
        operations: Operations, engines: tuple[FakeClient, FakeClient], data_file: Path, qtbot: QtBot) -> None:
    draft, gate = make_draft(operations), threading.Event()

    def slow(job: jobs.ScanData, control: Control) -> Iterator[events.Event]:
        gate.wait(5)
        yield make_scan()

    engines[1].answers[jobs.ScanData] = slow
    draft.set_values({"model.path": "m", "data.train": (str(data_file),)})
    qtbot.waitUntil(lambda: "ScanData" in engines[1].kinds())
    draft.set_value("data.train", ())
    qtbot.waitUntil(lambda: not draft.checking)
    gate.set()
    qtbot.waitUntil(lambda: not operations.busy)
    assert draft.scan is None and fields(draft) == ["data.train"]


def test_an_answer_about_a_model_that_was_left_is_not_shown(
        operations: Operations, engines: tuple[FakeClient, FakeClient], qtbot: QtBot) -> None:
    draft, gate = make_draft(operations), threading.Event()

    def slow(job: jobs.InspectModel, control: Control) -> Iterator[events.Event]:
        gate.wait(5)
        yield events.ModelInspected(make_card())

    engines[1].answers[jobs.InspectModel] = slow
    draft.set_value("model.path", "m")
    qtbot.waitUntil(lambda: "InspectModel" in engines[1].kinds())
    draft.set_value("model.path", "")
    qtbot.waitUntil(lambda: not draft.checking)
    gate.set()
    qtbot.waitUntil(lambda: not operations.busy)
    assert draft.card is None


def test_large_data_is_measured_in_slices(
        operations: Operations, engines: tuple[FakeClient, FakeClient], data_file: Path, qtbot: QtBot) -> None:
    draft, parts, begun = make_draft(operations), [], []

    def sliced(job: jobs.ScanData, control: Control) -> Iterator[events.Event]:
        done = engines[1].kinds().count("ScanData")
        assert job.seconds > 0
        yield make_scan(measured=min(1.0, done / 3), rows=done)

    engines[1].answers[jobs.ScanData] = sliced
    draft.part_scanned.connect(parts.append)
    draft.measuring.connect(lambda: begun.append(operations.work(jobs.PreviewRows(draft.config)).start()))
    draft.set_values({"model.path": "m", "data.train": (str(data_file),)})
    qtbot.waitUntil(lambda: draft.ready)
    assert [part.rows for part in parts] == [1, 2] and draft.scan is not None and draft.scan.rows == 3
    assert engines[1].kinds() == ["InspectModel", "ScanData", "PreviewRows", "ScanData", "ScanData"]
    assert len(begun) == 1


def test_what_was_refused_in_a_field_that_is_gone_holds_nothing_up(operations: Operations) -> None:
    draft = make_draft(operations)
    alone = fields(draft)
    assert not draft.set_value("adapter.target_modules", ())
    draft.set_values({"adapter.method": "none", "prefix": {}})
    assert fields(draft) == alone
    draft.set_values({"adapter.method": "lora", "bottleneck": {}})
    draft.set_error("adapter.rank_pattern", "'junk' is not of the form name = number.")
    draft.set_error("bottleneck.last_layer", "This is not a number.")
    draft.set_error("training.epochs", "This is not a number.")
    draft.set_value("adapter.method", "adalora")  # has no ranks by name
    draft.set_value("bottleneck", None)
    assert draft.refused == {"training.epochs"}  # still there, and still shown
    draft.set_value("training.epochs", 2.0)
    assert fields(draft) == alone
