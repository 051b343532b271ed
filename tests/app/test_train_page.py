"""The Train page: figures, outcome, log, past runs, a resumed run."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_fakes import make_run, planned, step_done
from PySide6.QtGui import QGuiApplication
from pytestqt.qtbot import QtBot

from app import figures
from app.bars import StatusLine
from app.pages.train import TrainPage
from app.run_log import MOST_LINES, RunLog
from app.run_record import LogLine, RunRecord
from core import events
from core.cli import screen
from core.runs.folder import RunFolder


@pytest.fixture
def page(qtbot: QtBot) -> TrainPage:
    made = TrainPage()
    qtbot.addWidget(made)
    made.resize(1000, 650)
    made.show()
    return made


def feed(page: TrainPage, *what: events.Event) -> None:
    for event in what:
        page.on_event(event)
    page._refresh()


def begin(page: TrainPage, run: Path, total: int = 100) -> None:
    page.begin(run)
    feed(page, events.Started("Train", run, time.time(), 1), planned(total))


def test_empty_state_starts(page: TrainPage, qtbot: QtBot) -> None:
    assert page.empty.isVisible()
    with qtbot.waitSignal(page.start_requested):
        page.empty.button.click()
    page.set_ready(False, "<b>Choose</b> a model.")
    assert not page.empty.button.isEnabled()
    assert "<b>" not in page.empty.button.toolTip()


def test_figures_of_a_run_that_goes_on(page: TrainPage, tmp_path: Path) -> None:
    begin(page, tmp_path / "run")
    feed(page, *(step_done(n, 2.0, seconds=0.5) for n in range(1, 21)), events.Evaluated(20, 0.75, 10, 1.0, True))
    assert page.figures.text("step") == "20 of 100"
    assert page.figures.text("epoch") == "0.2 of 1"
    assert page.figures.text("loss") == "2.000"
    assert page.figures.text("validation") == "0.750 (0.750)"
    assert page.figures.text("speed") == "200 tok/s"
    assert page.figures.text("memory") == "2.0 GB"
    assert page.figures.text("left") == "40 s"  # 80 steps of 0.5 s, and a share of the evaluations
    assert page.progress.value() == 200
    assert not page.chat_button.isVisible()


def test_widths_of_figures_do_not_change(page: TrainPage, tmp_path: Path) -> None:
    begin(page, tmp_path / "run", 900)
    feed(page, step_done(1, 2.0))
    before = page.figures._values["loss"].geometry()
    feed(page, step_done(2, 0.001))
    assert page.figures._values["loss"].geometry() == before


def test_outcome_is_said_with_its_buttons(page: TrainPage, tmp_path: Path, qtbot: QtBot) -> None:
    run = tmp_path / "run"
    begin(page, run)
    feed(page, events.Evaluated(0, 2.1, 1, 0.0, True), *(step_done(n, seconds=1.92) for n in range(1, 101)),
         events.Evaluated(100, 0.08, 1, 0.0, True), events.Finished("finished", run / "adapter"), events.Result({}))
    assert page.sentence.full_text == "Finished in 3 min 12 s. Validation loss fell from 2.1 to 0.08."
    assert page.chat_button.isVisible() and page.export_button.isVisible()
    assert not page.resume_button.isVisible() and not page.report_button.isVisible()
    with qtbot.waitSignal(page.chat_requested) as asked:
        page.chat_button.click()
    assert asked.args == [run]
    with qtbot.waitSignal(page.export_requested):
        page.export_button.click()


def test_a_failed_run_can_be_resumed_and_reported(page: TrainPage, tmp_path: Path, qtbot: QtBot) -> None:
    run = tmp_path / "run"
    begin(page, run)
    failure = events.Failed("The engine stopped <i>unexpectedly</i>.", "Resume goes on from step 5.", "Traceback …")
    feed(page, step_done(5), events.CheckpointSaved(5, run, 10, 0.1), failure, failure)
    assert page.sentence.full_text == failure.message
    assert page.hint.full_text == failure.hint
    assert not page.chat_button.isVisible()
    page.report_button.click()
    assert "Traceback …" in QGuiApplication.clipboard().text()
    with qtbot.waitSignal(page.resume_requested) as asked:
        page.resume_button.click()
    assert asked.args == [run]
    assert page.log.text.toPlainText().count("unexpectedly") == 1  # told twice, written once
    assert "<i>" in page.log.text.toPlainText()


def test_nan_losses_are_shown_and_logged(page: TrainPage, tmp_path: Path) -> None:
    begin(page, tmp_path / "run")
    feed(page, step_done(1, 2.0), step_done(2, math.nan), step_done(3, math.inf), step_done(4, 1.0, grad_norm=math.nan))
    page.plots.group.redraw()
    page.grab()
    text = page.log.text.toPlainText()
    assert "Step 2: the loss is not a number (NaN)" in text and "Step 3" in text
    assert math.isfinite(float(page.figures.text("loss")))


def test_past_runs_are_read_and_the_live_one_is_kept(page: TrainPage, tmp_path: Path, qtbot: QtBot) -> None:
    past = make_run(tmp_path, "past")
    begin(page, tmp_path / "live")
    feed(page, step_done(1))
    page.show_run(past.path)
    qtbot.waitUntil(lambda: page.record is not None and page.record.name == "past", timeout=3000)
    assert page.sentence.full_text.startswith("Finished in 5.1 s.")
    assert "0:05" in page.log.text.toPlainText()  # no clock time: it was not watched
    feed(page, step_done(2))
    assert page.record is not None and page.record.name == "past"
    page.live_button.click()
    assert page.record is not None and page.record.name == "live" and page.figures.text("step") == "2 of 100"


def test_an_interrupted_run_says_so(page: TrainPage, tmp_path: Path, qtbot: QtBot) -> None:
    run = make_run(tmp_path, "broken", [events.Started("Train", None, 1.0), planned(), step_done(1),
                                        events.CheckpointSaved(1, tmp_path, 5, 0.1)])
    page.show_run(run.path)
    qtbot.waitUntil(lambda: page.record is not None, timeout=3000)
    assert page.sentence.full_text == "The run broke off at step 1. It can go on from its last checkpoint."
    assert page.resume_button.isVisible()


def test_a_resumed_run_shows_its_past(page: TrainPage, tmp_path: Path, qtbot: QtBot) -> None:
    again = planned(100, first_step=10)
    log = [events.Started("Train", None, 1.0), planned(), *(step_done(n) for n in range(1, 11)),
           events.CheckpointSaved(10, tmp_path, 5, 0.1), events.Started("Resume", None, 2.0), again]
    run = make_run(tmp_path, "run", log)
    page.begin(run.path)
    feed(page, events.Started("Resume", run.path, time.time()), again, step_done(11), step_done(12))
    qtbot.waitUntil(lambda: page.record is not None and page.record.step is not None
                    and page.record.step.step == 12, timeout=3000)
    assert page.record is not None and list(page.record.series.loss.steps) == list(range(1, 13))
    assert page.record.active and "The run goes on." in page.log.text.toPlainText()


def test_pause_and_a_stop_before_the_first_step(page: TrainPage, tmp_path: Path) -> None:
    begin(page, tmp_path / "run")
    page.set_paused(True)
    page._refresh()
    assert page.sentence.full_text == "Paused."
    page.set_paused(True)
    page.set_paused(False)
    assert page.log.text.toPlainText().count("Paused.") <= 1
    page.end_run()
    page._refresh()
    assert page.sentence.full_text == "Stopped before the first step."


def test_progress_before_the_first_step_is_said(page: TrainPage, tmp_path: Path) -> None:
    page.begin(tmp_path / "run")
    feed(page, events.Started("Train", tmp_path / "run", time.time()),
         events.Progress("Reading rows", 250, 1000, "rows"))
    assert page.sentence.full_text == "Reading rows: 250 of 1,000 rows"
    assert page.progress.value() == 250


def test_log_is_bounded_and_copied(qtbot: QtBot) -> None:
    log = RunLog()
    qtbot.addWidget(log)
    lines = [LogLine("00:00:00", f"line {n} <img src=x>") for n in range(MOST_LINES + 500)]
    log.show_lines(lines)
    assert log.text.blockCount() == MOST_LINES
    log.copy()
    assert QGuiApplication.clipboard().text().endswith(f"line {MOST_LINES + 499} <img src=x>")


def test_time_left_counts_evaluations() -> None:
    record = RunRecord(None, live=True, smoothing=0.9)
    record.add(planned(100))
    assert math.isnan(record.seconds_left())
    for step in range(1, 11):
        record.add(step_done(step, seconds=1.0))
    record.add(events.Evaluated(10, 1.0, 1, 5.0, True))
    assert record.seconds_left() == pytest.approx(90 * 1.5)


def test_page_line_and_terminal_tell_the_same_time_left(
        qtbot: QtBot, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation before the first step is reckoned once more for the end."""
    record, line = RunRecord(None, live=True, smoothing=0.9), StatusLine()
    qtbot.addWidget(line)
    log = [planned(100), events.Evaluated(0, 2.0, 1, 60.0, False), *(step_done(n, seconds=1.0) for n in range(1, 11))]
    for event in log:
        record.add(event)
        line.add(event)
    assert record.seconds_left() == pytest.approx(90 + 60)
    assert figures.time_left(record.seconds_left()) == "2 min" and "2 min left" in line.text.full_text
    monkeypatch.setattr(screen, "_SECONDS_BETWEEN_LINES", 0.0)
    with screen.TextScreen(lambda values: "") as terminal:
        for event in log:
            terminal.show(event)
    assert "2 min left" in capsys.readouterr().err.splitlines()[-1]


def test_a_log_that_can_not_be_read_is_told(qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "run")

    def refuse(_run: RunFolder, _end: int | None = None) -> Iterator[events.Event]:
        raise PermissionError(13, "Permission denied", "events.jsonl")

    monkeypatch.setattr(RunFolder, "read_events", refuse)
    monkeypatch.setattr(RunFolder, "state", lambda _run: "finished")
    page = TrainPage()
    qtbot.addWidget(page)
    page.show()
    page.show_run(run.path)
    qtbot.waitUntil(lambda: page.record is not None, timeout=5000)
    assert "No permission" in page.sentence.full_text and page.report_button.isVisible()
    assert not page.resume_button.isVisible() and not page.export_button.isVisible()


def test_a_run_that_was_renamed_or_deleted_is_not_acted_on(qtbot: QtBot, tmp_path: Path) -> None:
    run = make_run(tmp_path, "run")
    page = TrainPage()
    qtbot.addWidget(page)
    page.show()
    page.show_run(run.path)
    qtbot.waitUntil(lambda: page.record is not None, timeout=5000)
    page.run_moved(run.path, tmp_path / "other")
    with qtbot.waitSignal(page.export_requested) as asked:
        page.export_button.click()
    assert asked.args == [tmp_path / "other"]
    page.run_deleted(tmp_path / "other")
    assert not page.export_button.isVisible() and not page.chat_button.isVisible()
