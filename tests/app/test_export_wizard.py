"""The export wizard: choices, problems at their fields, work, cancel, green and red receipts."""

import dataclasses
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_fakes import FakeClient, make_run
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QLabel, QWizard
from pytestqt.qtbot import QtBot

from app import export_choice
from app.export_choice import ExportChoice, folder_problem
from app.export_wizard import ExportWizard
from app.operations import Operations
from core import events, jobs, records
from core.control import Control
from core.errors import Cancelled

MARKUP = "<img src=x><b>bold</b>"
CARD = records.ModelCard(Path("/m"), "SmolLM2", "llama", "LlamaForCausalLM", 134_515_008, 30, 576, 1536, 9, 3, 49152,
                        8192, "bf16", 269_000_000, True, True, "x", "f")

READERS = tuple(records.LoaderVerdict(name, "exactly", f"Fine {MARKUP}") for name in ("peft", "vLLM", "llama.cpp"))
ADAPTER = records.AdapterCard(
    Path("/a"), "a", "LoRA, rank-stabilised", 8, 1000, 4000, "fp32", "SmolLM2", "",
    loaders=(READERS[0], READERS[1], records.LoaderVerdict("llama.cpp", "wrongly", f"It scales {MARKUP}")),
    compatible=READERS)


def receipt(out: Path, passed: bool = True) -> records.Receipt:
    rows = (records.ReceiptRow(f"Prompt {MARKUP}", f"Same {MARKUP}", f"Same {MARKUP}", 3e-5, 1.0),)
    return records.Receipt("merged", out, "bf16", passed, 3.2e-5 if passed else 0.25, 1e-4, 1.0 if passed else 0.5,
                          0.0234, rows, f"Why {MARKUP}")


class Engine:
    """Merges until `gate` is set, then ends as `outcome` says."""

    def __init__(self, outcome: str = "passed") -> None:
        self.outcome = outcome
        self.gate = threading.Event()
        self.client = FakeClient(self.script)

    def script(self, job: jobs.Job, control: Control) -> Iterator[events.Event]:
        if isinstance(job, jobs.InspectModel):
            yield events.ModelInspected(CARD)
            yield events.Result()
            return
        if isinstance(job, jobs.InspectAdapter):
            yield events.AdapterInspected(ADAPTER)
            yield events.Result()
            return
        assert isinstance(job, jobs.Export)
        for done in range(5):
            yield events.Progress("Merging", done, 10, "tensors")
        while not self.gate.is_set():
            if control.stop_requested:
                raise Cancelled()
            time.sleep(0.005)
        if self.outcome == "failed":
            yield events.Failed("The disk <b>is</b> full.", "Free some space.", "Traceback")
            return
        if self.outcome != "no receipt":
            yield events.ReceiptReady(receipt(job.out, self.outcome == "passed"))
        yield events.Result({})


def open_wizard(qtbot: QtBot, run: Path, engine: Engine) -> ExportWizard:
    wizard = ExportWizard(Operations(FakeClient(engine.script), engine.client), run, root=lambda: run.parent)
    qtbot.addWidget(wizard)
    wizard.show()
    qtbot.waitUntil(lambda: wizard.state.facts is not None and wizard.state.facts.card is not None, timeout=5000)
    qtbot.waitUntil(lambda: wizard.state.operations.current("work") is None, timeout=5000)  # the adapter, too
    return wizard


def to_work(qtbot: QtBot, wizard: ExportWizard) -> None:
    wizard.next()
    wizard.where.cards["merged"].radio.setChecked(True)
    wizard.next()
    assert wizard.details.isComplete(), wizard.details.problem.text
    wizard.next()
    qtbot.waitUntil(lambda: wizard.work.stage.text() == "Merging: 4 of 10 tensors", timeout=5000)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs", "run").path


def test_a_passed_receipt_is_green(qtbot: QtBot, run: Path) -> None:
    engine = Engine()
    wizard = open_wizard(qtbot, run, engine)
    to_work(qtbot, wizard)
    assert wizard.work.bar.value() == 4 and not wizard.work.isComplete()
    engine.gate.set()
    qtbot.waitUntil(lambda: wizard.currentPage() is wizard.receipt_page, timeout=5000)
    view = wizard.receipt_page.view
    assert view.verdict.text().startswith("Passed") and view.sign._name == "check-circle"
    assert view.figures.text("difference") == "3.2e-5 of 0.0001 allowed"
    assert view.figures.text("agreement") == "100%" and view.figures.text("delta") == "2.3%"
    shown = [one.text() for one in view.findChildren(QLabel)]
    assert shown.count(f"Same {MARKUP}") == 2 and any("the same words" in text for text in shown)
    wizard.receipt_page.copy_button.click()
    command = QGuiApplication.clipboard().text()
    assert command.startswith("lora-workbench export ") and "--to merged" in command and "--out" in command
    with qtbot.waitSignal(wizard.chat_requested) as asked:
        wizard.receipt_page.chat_button.click()
    assert asked.args == [run] and not wizard.isVisible()


def test_a_failed_receipt_is_never_green(qtbot: QtBot, run: Path) -> None:
    engine = Engine("red")
    wizard = open_wizard(qtbot, run, engine)
    to_work(qtbot, wizard)
    engine.gate.set()
    qtbot.waitUntil(lambda: wizard.currentPage() is wizard.receipt_page, timeout=5000)
    view = wizard.receipt_page.view
    assert view.verdict.text().startswith("Not passed")
    assert (view.sign._name, view.sign._role) == ("x-circle", "danger")
    assert view.figures.text("difference") == "0.25 of 0.0001 allowed"


def test_a_change_that_was_rounded_away_is_never_green(qtbot: QtBot, run: Path) -> None:
    wizard = open_wizard(qtbot, run, Engine())
    view = wizard.receipt_page.view
    view.show_receipt(dataclasses.replace(receipt(run), realised_delta_error=0.8))
    assert view.sign._name == "warning"
    assert "bf16 lost much of what was learned" in view.verdict.text()
    assert "Export as fp32" in view.explanation.text()


def test_a_receipt_that_could_not_be_measured(qtbot: QtBot, run: Path) -> None:
    wizard = open_wizard(qtbot, run, Engine())
    unproven = dataclasses.replace(receipt(run, False), largest_difference=math.inf, rows=(),
                                   realised_delta_error=math.nan)
    wizard.receipt_page.view.show_receipt(unproven)
    view = wizard.receipt_page.view
    assert {view.figures.text(name) for name in ("difference", "agreement", "delta")} == {"not measured"}
    assert view.sign._name == "x-circle"


def test_a_failure_stands_on_the_page_and_can_be_tried_again(qtbot: QtBot, run: Path) -> None:
    engine = Engine("failed")
    wizard = open_wizard(qtbot, run, engine)
    to_work(qtbot, wizard)
    engine.gate.set()
    qtbot.waitUntil(lambda: not wizard.work.busy, timeout=5000)
    assert wizard.currentPage() is wizard.work
    assert wizard.work.problem.text == "The disk <b>is</b> full. Free some space."
    wizard.work.report_button.click()
    assert "Traceback" in QGuiApplication.clipboard().text()
    engine.outcome = "passed"
    wizard.work.retry_button.click()
    qtbot.waitUntil(lambda: wizard.currentPage() is wizard.receipt_page, timeout=5000)


def test_without_a_receipt_nothing_is_called_done(qtbot: QtBot, run: Path) -> None:
    engine = Engine("no receipt")
    wizard = open_wizard(qtbot, run, engine)
    to_work(qtbot, wizard)
    engine.gate.set()
    qtbot.waitUntil(lambda: not wizard.work.busy, timeout=5000)
    assert wizard.currentPage() is wizard.work and "no receipt" in wizard.work.problem.text


def test_cancel_stops_the_work_first(qtbot: QtBot, run: Path) -> None:
    wizard = open_wizard(qtbot, run, Engine())
    to_work(qtbot, wizard)
    qtbot.waitUntil(lambda: not wizard.button(QWizard.WizardButton.BackButton).isEnabled(), timeout=3000)
    wizard.reject()
    qtbot.waitUntil(lambda: not wizard.work.busy, timeout=5000)
    assert wizard.isVisible() and wizard.work.stage.text() == "Cancelled. Nothing was left behind."
    assert wizard.button(QWizard.WizardButton.BackButton).isEnabled()
    wizard.reject()
    assert not wizard.isVisible()


def test_closing_the_window_cancels_and_closes_afterwards(qtbot: QtBot, run: Path) -> None:
    wizard = open_wizard(qtbot, run, Engine())
    to_work(qtbot, wizard)
    wizard.close()
    qtbot.waitUntil(lambda: not wizard.isVisible(), timeout=5000)
    assert not wizard.work.busy


def test_problems_stand_at_the_folder(qtbot: QtBot, run: Path, tmp_path: Path) -> None:
    wizard = open_wizard(qtbot, run, Engine())
    wizard.next()
    wizard.next()
    details = wizard.details
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    for folder, words in ((str(tmp_path / "full"), "not empty"), ("", "Choose a folder"), ("relative", "whole path"),
                          (str(tmp_path / "full" / "x"), "This is a file"),
                          (str(tmp_path / "full" / "x" / "y"), "is a file, not a folder")):
        details.folder.setText(folder)
        assert words in details.problem.text and not details.isComplete()
        assert details.folder.property("wrong") is True
    details.folder.setText(str(tmp_path / "new" / "folder"))
    assert details.isComplete() and "free" in details.space.text()


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_choice.files, "free_bytes", lambda _path: 10**6)
    assert "1.0 MB are free" in folder_problem(str(tmp_path / "out"), 10**9)[0]
    assert folder_problem(str(tmp_path / "out"), 0) == ("", "")


def test_sizes_follow_the_choice(qtbot: QtBot, run: Path) -> None:
    wizard = open_wizard(qtbot, run, Engine())
    facts = wizard.state.facts
    assert facts is not None
    choice = wizard.state.choice
    assert facts.bytes_of(choice) == 1000
    assert facts.bytes_of(dataclasses.replace(choice, dtype="bf16")) == 500
    merged = dataclasses.replace(choice, to="merged")
    assert facts.bytes_of(merged) == 269_000_000
    assert facts.bytes_of(dataclasses.replace(merged, dtype="fp32")) == 4 * 134_515_008
    wizard.next()
    assert "269 MB" in wizard.where.cards["merged"].cost.text()


def test_the_choices_arrive_in_the_job(qtbot: QtBot, run: Path, tmp_path: Path) -> None:
    engine = Engine()
    wizard = open_wizard(qtbot, run, engine)
    wizard.what.picker.checkpoint_box.setCurrentIndex(1)
    wizard.next()
    wizard.where.cards["merged"].radio.setChecked(True)
    wizard.next()
    wizard.details.dtype.setCurrentIndex(wizard.details.dtype.findData("fp16"))
    wizard.details.shards.setCurrentIndex(2)
    wizard.details.folder.setText(str(tmp_path / "out put"))
    wizard.next()
    qtbot.waitUntil(lambda: any(isinstance(job, jobs.Export) for job in engine.client.jobs), timeout=5000)
    job = next(job for job in engine.client.jobs if isinstance(job, jobs.Export))
    assert job == jobs.Export(run, "merged", tmp_path / "out put", "step-000010", "fp16", 2_000_000_000)
    wizard.reject()
    qtbot.waitUntil(lambda: not wizard.work.busy, timeout=5000)


def test_default_folder_is_new(home: Path, tmp_path: Path) -> None:
    choice = ExportChoice(tmp_path / "run").with_default_folder()
    assert choice.out == home / "exports" / "run-adapter"
    choice.out.mkdir(parents=True)
    assert choice.with_default_folder().out.name == "run-adapter-2"


def test_a_run_without_adapter_can_not_be_exported(qtbot: QtBot, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "run", trained=False).path
    engine = Engine()
    wizard = ExportWizard(Operations(FakeClient(engine.script), engine.client), run, root=lambda: run.parent)
    qtbot.addWidget(wizard)
    wizard.show()
    assert not wizard.what.isComplete()
    assert "no run with an adapter" in wizard.what._problem.text


def test_another_run_never_slips_in_for_one_without_adapter(qtbot: QtBot, tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "good")
    run = make_run(tmp_path / "runs", "empty", trained=False).path
    engine = Engine()
    wizard = ExportWizard(Operations(FakeClient(engine.script), engine.client), run, root=lambda: run.parent)
    qtbot.addWidget(wizard)
    wizard.show()
    assert wizard.what.picker.run is None and not wizard.what.isComplete()
    assert "has no adapter" in wizard.what._problem.text
    wizard.what.picker.run_box.setCurrentIndex(0)
    assert wizard.state.choice.run_dir.name == "good" and wizard.what.isComplete()
    qtbot.waitUntil(lambda: wizard.state.facts is not None and wizard.state.facts.card is not None, timeout=5000)
    qtbot.waitUntil(lambda: wizard.state.operations.current("work") is None, timeout=5000)


def test_the_form_that_more_programs_read_is_proposed(qtbot: QtBot, run: Path) -> None:
    wizard = open_wizard(qtbot, run, Engine())
    qtbot.waitUntil(lambda: wizard.state.adapter is not None, timeout=5000)
    wizard.next()
    wizard.next()
    details = wizard.details
    assert details.form.currentData() == "compatible" and details.form.isVisible()
    assert all("exactly" in line for line in details.loaders.lines)
    details.form.setCurrentIndex(details.form.findData("peft"))
    assert "llama.cpp reads it wrongly" in details.loaders.lines[2]
    assert wizard.state.choice.job().form == "peft" and "--form" not in wizard.state.choice.command()
    details.form.setCurrentIndex(details.form.findData("compatible"))
    assert wizard.state.choice.job().form == "compatible" and "--form compatible" in wizard.state.choice.command()
    wizard.back()
    wizard.where.cards["merged"].radio.setChecked(True)
    wizard.next()
    assert not details.form.isVisible() and not details.loaders.isVisible()
    assert wizard.state.choice.job().form == "peft"


def test_an_adapter_made_elsewhere_is_exported_on_its_base(qtbot: QtBot, tmp_path: Path) -> None:
    engine = Engine()
    wizard = ExportWizard(Operations(FakeClient(engine.script), engine.client), root=lambda: tmp_path)
    qtbot.addWidget(wizard)
    wizard.state.choose_elsewhere(ADAPTER, "/models/theirs")
    wizard.show()
    qtbot.waitUntil(lambda: wizard.state.facts is not None and wizard.state.facts.card is not None, timeout=5000)
    qtbot.waitUntil(lambda: wizard.state.operations.current("work") is None, timeout=5000)
    assert wizard.what.isComplete() and not wizard.what.picker.isVisible()
    wizard.next()
    wizard.next()
    job = wizard.state.choice.job()
    assert (job.run_dir, job.base, job.form) == (Path("/a"), "/models/theirs", "compatible")
    assert "--base /models/theirs" in wizard.state.choice.command()
