"""The memory bar by part, live with the form; Measure, its correction, its failure and its end."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeClient
from pytestqt.qtbot import QtBot

from app import machine
from app.draft import Draft
from app.memory_probe import MemoryProbe
from app.memory_view import MemoryView
from app.operations import Operations
from app.pages.method import MethodPage
from core import events, jobs
from core.config import RunConfig, parse_config
from core.control import Control
from core.engine.protocol import Ready
from core.errors import Cancelled

MEASURED = 3_000_000_000


@pytest.fixture
def config(data_file: Path) -> RunConfig:
    return parse_config({"model": {"path": "starter"}, "data": {"train": [str(data_file)]}})


@pytest.fixture
def page(operations: Operations, config: RunConfig, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> MethodPage:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 8_000_000_000)
    draft = Draft(operations, debounce_ms=1)
    made = MethodPage(draft, MemoryProbe(draft, operations, draft))
    qtbot.addWidget(made)
    made.resize(900, 700)
    made.show()
    draft.replace(config)
    qtbot.waitUntil(lambda: draft.ready)
    return made


def view(page: MethodPage) -> MemoryView:
    return page.memory


def test_on_a_gpu_it_is_the_memory_of_that(page: MethodPage, engines: tuple[FakeClient, FakeClient],
                                          operations: Operations) -> None:
    on_cpu = legend(page)["weights"]
    engines[0].hardware = Ready(devices={"cuda:0": 80_000_000_000, "cpu": 8_000_000_000})
    operations.changed.emit()
    assert "of 80 GB" in view(page).text.text() and legend(page)["weights"] != on_cpu  # held in 16 bits there
    page._draft.set_value("training.device", "cpu")
    assert "of 8.0 GB" in view(page).text.text() and legend(page)["weights"] == on_cpu


def test_a_base_that_is_spread_over_gpus_counts_as_what_one_holds(page: MethodPage, operations: Operations,
                                                                 engines: tuple[FakeClient, FakeClient]) -> None:
    engines[0].hardware = Ready(devices={"cuda:0": 80_000_000_000, "cuda:1": 80_000_000_000, "cpu": 8_000_000_000})
    operations.changed.emit()
    page._draft.set_values({"training.device": "all", "training.parallel": "shard"})
    found = page._probe.estimate()
    assert found is not None and "The weights of the layers are spread over 2 GPUs." in found.assumptions


def legend(page: MethodPage) -> dict[str, str]:
    amounts = page.memory.legend._amounts
    return {part: amount.text() for part, amount in amounts.items() if amount.isVisible()}


def test_the_bar_shows_the_parts_and_follows_the_form(page: MethodPage) -> None:
    before = legend(page)
    assert set(before) >= {"weights", "adapter", "optimizer", "activations", "output layer", "overhead"}
    assert before["weights"].startswith("Weights ") and view(page).text.text().startswith("Training needs about ")
    assert "of 8.0 GB" in view(page).text.text()
    page._draft.set_value("adapter.rank", 32)
    assert legend(page)["adapter"] != before["adapter"]
    page._draft.set_value("data.max_length", 16)
    assert legend(page)["activations"] != before["activations"]


def test_a_low_window_keeps_its_height_for_the_tree(page: MethodPage) -> None:
    assert page.memory.legend.isVisible()
    page.resize(900, 480)
    assert not page.memory.legend.isVisible() and page.memory.bar.isVisible()
    assert "Weights" in page.memory.bar.toolTip() and "Weights" in page.memory.bar.accessibleDescription()
    page._draft.set_value("adapter.rank", 4)
    assert not page.memory.legend.isVisible()


def test_what_does_not_fit_is_said(page: MethodPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 100_000_000)
    view(page).refresh()
    assert "more than there is" in view(page).text.text()
    assert view(page).bar.accessibleDescription().split("%")[0] > "100"
    assert not view(page).grab().isNull()  # with the mark of what there is


def test_measure_corrects_the_estimate_of_this_run_and_of_those_like_it(
        page: MethodPage, engines: tuple[FakeClient, FakeClient], qtbot: QtBot) -> None:
    engines[1].answers[jobs.ProbeMemory] = [events.Progress("Measuring a step", 0, 2),
                                            events.MemoryMeasured(MEASURED, "cpu", 90, 0.5)]
    estimated = page._probe.estimate()
    assert estimated is not None
    view(page).measure_button.click()
    qtbot.waitUntil(lambda: page._probe.is_measured)
    qtbot.waitUntil(lambda: not page._probe.busy)
    assert engines[1].jobs[-1] == jobs.ProbeMemory(page._draft.config)
    assert view(page).text.text() == "Training needs 3.0 GB of 8.0 GB, as measured."
    assert sum(page._probe.estimate().memory.values()) == MEASURED
    page._draft.set_value("adapter.rank", 9)  # a run like it
    assert "corrected by a measurement" in view(page).text.text()
    difference = page._probe.estimate().memory_bytes - page._probe._plain().memory_bytes
    assert difference == MEASURED - estimated.memory_bytes
    page._draft.set_value("training.dtype", "bf16")  # and one unlike it
    assert "measure" not in view(page).text.text()
    assert page._probe.estimate() == page._probe._plain()


def test_a_measurement_can_be_cancelled(page: MethodPage, engines: tuple[FakeClient, FakeClient],
                                        qtbot: QtBot) -> None:
    def until_stopped(job: jobs.Job, control: Control) -> Iterator[events.Event]:
        yield events.Progress("Loading the model", 0, 0)
        while not control.stop_requested:
            time.sleep(0.005)
        yield events.Failed.of(Cancelled())

    engines[1].answers[jobs.ProbeMemory] = until_stopped
    before = view(page).text.text()
    view(page).measure_button.click()
    qtbot.waitUntil(lambda: view(page).text.text() == "Loading the model…")
    assert view(page).measure_button.text() == "Cancel"
    view(page).measure_button.click()
    qtbot.waitUntil(lambda: not page._probe.busy)
    assert view(page).text.text() == before and view(page).measure_button.text() == "Measure"
    assert not view(page).failure.isVisible()


def test_a_measurement_that_fails_says_why(page: MethodPage, engines: tuple[FakeClient, FakeClient],
                                           qtbot: QtBot) -> None:
    engines[1].answers[jobs.ProbeMemory] = [events.Failed("It does not fit.", "Take less.")]
    view(page).measure_button.click()
    qtbot.waitUntil(view(page).failure.isVisible)
    assert view(page).failure.text() == "It does not fit. Take less."
    page._draft.set_value("training.batch_size", 1)
    assert not view(page).failure.isVisible()


def test_a_run_that_can_not_start_can_not_be_measured(page: MethodPage) -> None:
    assert view(page).measure_button.isEnabled()
    page._draft.set_value("adapter.rank", 100)  # wider than the layers
    assert not view(page).measure_button.isEnabled()
