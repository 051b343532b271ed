"""The window over engines that answer at once: signs, problems, Start, closing, foreign text."""

import contextlib
import dataclasses
import errno
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeClient, make_card, make_scan, texts_of
from page_fakes import make_run
from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QAbstractButton,
    QComboBox,
    QDialog,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QScrollArea,
    QSpinBox,
    QWidget,
)
from pytestqt.qtbot import QtBot

from app import page_stack
from app import window as window_module
from app.operations import Operations
from app.pages.method import MethodPage
from app.pages.runs import RunsPage
from app.settings import Settings
from app.theme import Theme, colors
from app.widgets import ElidedLabel
from app.window import MainWindow
from core import events, files, jobs, records
from core.config import RunConfig, load_config, parse_config
from core.control import Control
from core.engine.protocol import Ready

MARKUP = '<img src="http://example.invalid/x.png"><b>bold</b>'
MakeWindow = Callable[..., MainWindow]


@pytest.fixture
def make_window(operations: Operations, themed: Theme, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
                ) -> Iterator[MakeWindow]:
    monkeypatch.setattr(page_stack, "PREBUILD_MS", 10_000_000)
    made: list[MainWindow] = []

    def make(config: RunConfig | None = None, name: str = "") -> MainWindow:
        window = MainWindow(operations, Settings(), themed, config, name)
        made.append(window)
        window.show()
        return window

    yield make
    for window in made:
        window.session.stop()
        qtbot.waitUntil(lambda window=window: not window.session.active)
        window.close()
        window.deleteLater()


@pytest.fixture
def config(data_file: Path) -> RunConfig:
    return parse_config({"model": {"path": "tiny"}, "data": {"train": [str(data_file)]}})


def train_until_told(job: jobs.Train, control: Control) -> Iterator[events.Event]:
    yield events.Started("Train", job.run_dir, 0.0, 1)
    yield events.Planned(50, 90, 5, 1000, 10_000, 4000, "cpu", "fp32", True)
    for step in range(1, 51):
        if control.stop_requested:
            break
        yield events.StepDone(step, step / 50, 3.0 / step, 1e-3, 1.0, 400, 200, 0.5, 2_000_000_000)
        threading.Event().wait(0.02)
    yield events.Finished("stopped" if control.stop_requested else "finished", job.run_dir or Path())


def test_the_first_start_has_everything_chosen(make_window: MakeWindow, qtbot: QtBot) -> None:
    window = make_window()
    assert window.draft.config.model.path == "starter" and window.draft.name == "orders"
    assert [Path(file).name for file in window.draft.config.data.train] == ["train.jsonl"]
    qtbot.waitUntil(window.top.start.isEnabled)
    assert [window.sidebar.buttons[key].state for key in ("model", "data", "method")] == ["ready"] * 3
    assert window.top.name.text() == "orders" and "Ready" in window.status.text.full_text


def test_an_empty_draft_leads_to_what_is_missing(make_window: MakeWindow, qtbot: QtBot) -> None:
    window = make_window(RunConfig())
    assert not window.top.start.isEnabled() and not window.menus.start.isEnabled()
    assert "No base model" in window.top.start.toolTip() or "No base model" in window.top.start.accessibleDescription()
    assert window.sidebar.buttons["data"].state == "problem"
    qtbot.mouseClick(window.sidebar.buttons["data"].sign, Qt.MouseButton.LeftButton)
    assert window.stack.currentWidget() is window.page("data")
    window.start_training()  # by the short cut: leads to the first problem instead
    assert window.stack.currentWidget() is window.page("model") and not window.session.active


def test_a_problem_is_written_at_its_field_and_clears(make_window: MakeWindow, config: RunConfig, qtbot: QtBot
                                                      ) -> None:
    window = make_window(config)
    qtbot.waitUntil(window.top.start.isEnabled)
    window.show_page("method")
    method: Any = window.page("method")
    window.draft.set_value("adapter.first_layer", 7)
    field = method.adapter_form.fields["adapter.first_layer"]
    assert "3 layers" in field.problem.text and not window.top.start.isEnabled()
    assert window.sidebar.buttons["method"].state == "problem"
    window.show_page("model")
    window.go_to_problem("method")
    assert window.stack.currentWidget() is method and field.isVisible()  # it was folded away
    window.draft.undo_stack.undo()
    assert field.problem.text == "" and window.top.start.isEnabled()


def test_unticking_all_layers_is_refused_and_stays_in_sight(make_window: MakeWindow, config: RunConfig, qtbot: QtBot
                                                            ) -> None:
    window = make_window(config)
    qtbot.waitUntil(window.top.start.isEnabled)
    window.show_page("method")
    method: Any = window.page("method")
    assert "parameters trained" in method.live.text()
    before = method.live.text()
    tree = method.tree.tree
    for number in range(tree.topLevelItemCount()):
        tree.topLevelItem(number).setCheckState(0, Qt.CheckState.Unchecked)
    qtbot.waitUntil(lambda: not window.top.start.isEnabled())
    assert "at least one" in method.target_problem.text
    window.draft.set_value("adapter.rank", 4)
    assert method.tree.ticked() == set() and not window.draft.ready
    tree.topLevelItem(0).setCheckState(0, Qt.CheckState.Checked)
    qtbot.waitUntil(window.top.start.isEnabled)
    assert window.draft.value("adapter.target_modules") == ("embed_tokens",) and method.live.text() != before


def test_start_pause_and_stop(make_window: MakeWindow, config: RunConfig, engines: tuple[FakeClient, FakeClient],
                              qtbot: QtBot) -> None:
    engines[0].answers[jobs.Train] = train_until_told
    window = make_window(config, "first")
    qtbot.waitUntil(window.top.start.isEnabled)
    qtbot.mouseClick(window.top.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "Step" in window.status.text.full_text)
    assert window.stack.currentWidget() is window.page("train") and not window.top.start.isVisible()
    job = engines[0].jobs[0]
    assert isinstance(job, jobs.Train) and job.run_dir is not None and job.run_dir.name == "first"
    assert "tok/s" in window.status.text.full_text and "2.0 GB" in window.status.text.full_text
    qtbot.mouseClick(window.top.pause, Qt.MouseButton.LeftButton)
    assert window.session.state == "paused" and window.top.pause.text() == "Resume"
    qtbot.mouseClick(window.top.pause, Qt.MouseButton.LeftButton)
    qtbot.mouseClick(window.top.stop, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not window.session.active)
    assert window.top.start.isVisible() and window.top.start.isEnabled()


def test_a_crash_of_the_engine_offers_to_resume(make_window: MakeWindow, config: RunConfig,
                                                engines: tuple[FakeClient, FakeClient], qtbot: QtBot) -> None:
    def crash(job: jobs.Train, control: Control) -> Iterator[events.Event]:
        assert job.run_dir is not None
        (job.run_dir / "checkpoints" / "step-000010").mkdir(parents=True)
        yield events.Started("Train", job.run_dir, 0.0, 1)
        yield events.Failed("The engine ended unexpectedly.", "Resume.", "exit status -9")

    engines[0].answers[jobs.Train] = crash
    engines[0].answers[jobs.Resume] = []
    window = make_window(config)
    qtbot.waitUntil(window.top.start.isEnabled)
    window.start_training()
    qtbot.waitUntil(lambda: window.dialog is not None)
    dialog: Any = window.dialog
    assert dialog.resume_button.isVisible()
    dialog.resume_button.click()
    qtbot.waitUntil(lambda: engines[0].kinds() == ["Train", "Resume"])


@pytest.mark.parametrize("answer", ["cancel", "keep", "stop"])
def test_closing_during_a_run_asks(answer: str, make_window: MakeWindow, config: RunConfig,
                                   engines: tuple[FakeClient, FakeClient], qtbot: QtBot,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    engines[0].answers[jobs.Train] = train_until_told
    window = make_window(config)
    qtbot.waitUntil(window.top.start.isEnabled)
    window.start_training()
    qtbot.waitUntil(lambda: window.session.state == "running")
    monkeypatch.setattr(window_module, "ask_how_to_close", lambda _parent: answer)
    closed = window.close()
    if answer == "cancel":
        assert not closed and window.session.state == "running"
    elif answer == "keep":
        assert closed and engines[0].closed
    else:
        assert not closed and window.session.state == "stopping"
        qtbot.waitUntil(lambda: not window.isVisible())
        assert engines[0].closed


def test_the_draft_is_there_again_at_the_next_start(make_window: MakeWindow, config: RunConfig) -> None:
    window = make_window(config, "mine")
    window.draft.set_value("adapter.rank", 5)
    window.close()
    again = make_window()
    assert again.draft.name == "mine" and again.draft.value("adapter.rank") == 5


def test_a_draft_that_can_not_be_read_is_kept_and_told(make_window: MakeWindow, home: Path, qtbot: QtBot) -> None:
    home.mkdir(exist_ok=True)
    (home / "draft.toml").write_text("[adapter]\nrank = -1\n")
    window = make_window()
    qtbot.waitUntil(lambda: window.dialog is not None)
    assert "can not be read" in _shown(window.dialog)
    assert (home / "draft-unreadable.toml").read_text() == "[adapter]\nrank = -1\n"
    assert window.draft.name == "orders"


def test_a_full_disk_neither_starts_a_run_nor_holds_the_window(make_window: MakeWindow, config: RunConfig,
                                                               qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    window = make_window(config)
    qtbot.waitUntil(window.top.start.isEnabled)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    window.start_training()
    assert "The disk is full" in _shown(window.dialog) and not window.session.active
    assert not window.close() and "can not be kept" in _shown(window.dialog)
    assert window.close()


def test_closed_dialogs_do_not_pile_up(make_window: MakeWindow, qtbot: QtBot) -> None:
    window = make_window(RunConfig())
    for open_dialog in (window.about, window.show_command, lambda: window.show_failure(events.Failed("It broke."))):
        open_dialog()
        assert window.dialog is not None
        window.dialog.reject()
    assert window.dialog is None
    qtbot.waitUntil(lambda: not window.findChildren(QDialog))


def test_a_run_file_that_can_not_be_saved_is_told_in_its_dialog(make_window: MakeWindow, config: RunConfig,
                                                                tmp_path: Path) -> None:
    window = make_window(config)
    window.show_command()
    dialog: Any = window.dialog
    dialog.save(tmp_path)  # a folder
    assert dialog.problem.text and dialog.isVisible()
    dialog.save(tmp_path / "my run.toml")
    assert dialog.problem.text == "" and "my run.toml" in dialog.command.toPlainText()
    assert load_config(tmp_path / "my run.toml") == config


def test_all_gpus_are_offered_where_there_are_several(make_window: MakeWindow, engines: tuple[FakeClient, FakeClient]
                                                          ) -> None:
    window = make_window(RunConfig())
    action = window.menus.all_gpus
    assert not action.isVisible()
    engines[0].hardware = Ready(gpus=4)
    window.operations.changed.emit()
    assert action.isVisible() and not action.isChecked() and "4" in action.text()
    action.trigger()
    assert window.draft.config.training.device == "all" and action.isChecked()
    window.draft.undo_stack.undo()
    assert window.draft.config.training.device == "auto" and not action.isChecked()


def test_a_problem_far_down_is_scrolled_to_and_no_card_is_cut_off(
        make_window: MakeWindow, config: RunConfig, engines: tuple[FakeClient, FakeClient], qtbot: QtBot) -> None:
    window = make_window(config)
    engines[0].hardware = Ready(devices={"cpu": 10**9})
    qtbot.waitUntil(lambda: window.draft.ready)
    window.draft.set_value("training.device", "cuda:1")
    window.go_to_problem("")
    page = window.page("method")
    assert isinstance(page, MethodPage) and window.stack.currentWidget() is page
    field = page.training_form.fields["training.device"]
    qtbot.waitUntil(lambda: not field.visibleRegion().isEmpty())
    area = page.findChild(QScrollArea)
    assert area is not None
    qtbot.waitUntil(lambda: area.viewport().width() >= area.widget().minimumSizeHint().width())


def test_a_run_that_lies_elsewhere_is_opened_and_stays_listed(make_window: MakeWindow, tmp_path: Path,
                                                              qtbot: QtBot) -> None:
    window = make_window(RunConfig())
    run = make_run(tmp_path / "elsewhere", "kept")
    window.open_folder(run.path)
    train, runs = window._train_page(), window.page("runs")
    qtbot.waitUntil(lambda: train.record is not None and train.record.run_dir == run.path)
    assert window.stack.currentWidget() is train and isinstance(runs, RunsPage)
    window.show_page("runs")
    qtbot.waitUntil(lambda: [one.folder for one in runs.model.runs] == [run.path])
    moved = run.path.rename(run.path.with_name("renamed"))
    window.run_moved(run.path, moved)
    assert window.settings.other_runs[0] == moved


def test_the_side_bar_names_what_computes(make_window: MakeWindow, engines: tuple[FakeClient, FakeClient]) -> None:
    window = make_window(RunConfig())
    assert window.sidebar.machine.full_text.startswith("CPU")
    engines[0].hardware = Ready(accelerator="NVIDIA H100 · 80 GB")
    window.operations.changed.emit()
    assert window.sidebar.machine.full_text == "NVIDIA H100 · 80 GB"


def test_the_run_is_written_for_other_machines(make_window: MakeWindow, config: RunConfig, tmp_path: Path) -> None:
    window = make_window(config, "Orders: 2")
    window.run_elsewhere()
    dialog: Any = window.dialog
    dialog.gpus.setValue(2)
    dialog.nodes.setValue(3)
    assert "--nproc-per-node 2 " in dialog.command.toPlainText()
    dialog.write(tmp_path)
    dialog.write(tmp_path)  # again, into another folder
    for name in ("Orders- 2", "Orders- 2-2"):
        assert "num_nodes: 3" in (tmp_path / name / "task.yaml").read_text()
        assert load_config(tmp_path / name / "run.toml").data == config.data
    assert "Orders- 2-2" in dialog.written.text() and dialog.problem.text == ""
    dialog.gpu.setEditText("two words")
    dialog.write(tmp_path)
    assert "two words" in dialog.problem.text and dialog.written.text() == ""


def _shown(dialog: QWidget | None) -> str:
    assert dialog is not None
    return " ".join(label.text() for label in dialog.findChildren(QLabel))


def test_a_long_job_before_the_looking_is_named(make_window: MakeWindow, config: RunConfig, qtbot: QtBot,
                                                engines: tuple[FakeClient, FakeClient]) -> None:
    gate = threading.Event()

    def slow(job: jobs.DownloadModel, control: Control) -> Iterator[events.Event]:
        gate.wait(5)
        yield events.Result({})

    engines[1].answers[jobs.DownloadModel] = slow
    window = make_window(RunConfig())
    qtbot.waitUntil(lambda: not window.operations.busy)
    window.operations.work(jobs.DownloadModel("someone/tiny", "main")).start()
    window.draft.replace(config)
    assert "the engine is downloading" in window.status.text.full_text and not window.top.start.isEnabled()
    gate.set()
    qtbot.waitUntil(window.top.start.isEnabled)


def test_a_damaged_run_file_is_told_and_changes_nothing(make_window: MakeWindow, tmp_path: Path) -> None:
    window = make_window(RunConfig())
    file = tmp_path / "run.toml"
    file.write_text("[adapter]\nrank = -1\n")
    window.load_run_file(file)
    assert window.dialog is not None and window.draft.config == RunConfig()


def test_foreign_text_is_never_markup(make_window: MakeWindow, engines: tuple[FakeClient, FakeClient],
                                      tmp_path: Path, qtbot: QtBot) -> None:
    engine = engines[1]
    modules = tuple(dataclasses.replace(module, name=module.name.replace("layers", MARKUP))
                    for module in make_card().modules)
    engine.answers[jobs.InspectModel] = [events.ModelInspected(make_card(
        name=MARKUP, origin=MARKUP, architecture=MARKUP, warnings=(MARKUP,), modules=modules))]
    engine.answers[jobs.ListModels] = [events.ModelsListed((
        records.ModelEntry(MARKUP, Path(MARKUP), "library", 1, "refused", MARKUP),))]
    engine.answers[jobs.ScanData] = [make_scan(format=MARKUP, problems=(MARKUP,))]
    row = records.RowPreview(0, (records.Message(MARKUP, MARKUP, True),), (records.Token(MARKUP, True, False),), False)
    engine.answers[jobs.PreviewRows] = [events.RowsPrepared(1, (row,))]
    file = tmp_path / "<b>data<b>.jsonl"
    file.write_text("{}\n")
    window = make_window(parse_config({"model": {"path": MARKUP}, "data": {"train": [str(file)]}}), MARKUP)
    for key in ("model", "data", "method"):
        window.show_page(key)
    qtbot.waitUntil(lambda: "PreviewRows" in engine.kinds() and bool(window.draft.problems))
    assert window.draft.problems[0].message == MARKUP and not window.top.start.isEnabled()
    qtbot.wait(100)
    window.draft.set_error("adapter.rank", MARKUP)
    assert MARKUP not in window.top.start.toolTip() and window.top.start.toolTip()
    window.show_failure(events.Failed(MARKUP, MARKUP, MARKUP))
    for widget, text in texts_of(window):
        assert "<img" not in text and "<b>" not in text, (widget, text)
    items = window.page("model").models.list  # type: ignore[attr-defined]
    assert "<img" not in items.item(0).toolTip()


def test_every_control_has_a_name(make_window: MakeWindow, config: RunConfig, qtbot: QtBot) -> None:
    window = make_window(config)
    for key in ("model", "data", "method"):
        window.show_page(key)
    qtbot.waitUntil(window.top.start.isEnabled)
    for kind in (QAbstractButton, QLineEdit, QSpinBox, QComboBox, QPlainTextEdit):
        for widget in window.findChildren(kind):
            inside = widget.parentWidget()
            if widget.objectName().startswith("qt_") or isinstance(inside, QComboBox | QLineEdit):
                continue  # a part of Qt's own controls
            if isinstance(widget, QAbstractButton) and widget.isHidden() and not widget.text():
                continue  # an empty state without a button
            text = widget.text() if isinstance(widget, QAbstractButton) else ""
            sign = type(widget).__name__ == "_SignButton"  # says something only where there is a problem
            assert widget.accessibleName() or text or sign, (widget, inside)


def test_the_scheme_changes_live_and_is_remembered(make_window: MakeWindow, config: RunConfig) -> None:
    window = make_window(config)
    window.set_scheme("dark")
    assert colors().dark and Settings().scheme == "dark"
    window.set_scheme("light")
    assert not colors().dark


def test_no_text_is_cut_at_the_smallest_size(make_window: MakeWindow, config: RunConfig, qtbot: QtBot) -> None:
    window = make_window(config)
    window.resize(1024, 680)
    for key in ("model", "data", "method"):
        window.show_page(key)
        qtbot.waitUntil(window.top.start.isEnabled)
        with contextlib.suppress(qtbot.TimeoutError):
            qtbot.waitUntil(lambda key=key: not cut_texts(window.page(key)), timeout=2000)
        assert cut_texts(window.page(key)) == []


def cut_texts(page: QWidget) -> list[str]:
    """Texts of labels and buttons that have less room than they need; elided ones end in … on purpose."""
    found = []
    for widget in page.findChildren(QWidget):
        if not isinstance(widget, QLabel | QAbstractButton) or not widget.isVisible() or not widget.text():
            continue
        if isinstance(widget, QLabel):
            wraps = widget.wordWrap() or isinstance(widget, ElidedLabel)
            needed = 0 if wraps else widget.fontMetrics().horizontalAdvance(widget.text())
        else:
            needed = widget.sizeHint().width()
        if widget.width() < needed:
            found.append(widget.text())
    return found


def test_the_window_imports_neither_torch_nor_plots() -> None:
    code = ("import sys, app.window\n"
            "print([name for name in ('torch', 'transformers', 'pyqtgraph', 'qtawesome', 'numpy', 'huggingface_hub') "
            "if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
