"""The whole main job in the real window, with the real engines and a tiny model, by clicks and keys."""

import json
import os
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PySide6.QtCore import QCoreApplication, QEvent, Qt
from PySide6.QtWidgets import QPushButton, QWidget, QWizard
from pytestqt.qtbot import QtBot

from app.operations import Operations
from app.settings import Settings
from app.theme import Theme
from app.window import MainWindow
from core.config import parse_config
from core.engine.client import EngineClient
from core.events import StepDone
from core.runs.folder import RunFolder

START_MS = 120_000  # two engines import torch on a loaded machine


@pytest.fixture
def window(qtbot: QtBot, themed: Theme, tiny_model: Path, tmp_path: Path) -> Iterator[MainWindow]:
    """The window over the tiny model and forty rows, its engines started."""
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"messages": [
        {"role": "user", "content": f"How many pizzas? {number}"},
        {"role": "assistant", "content": f"I would like {number} pizzas."}]}) for number in range(40)))
    config = parse_config({
        "model": {"path": str(tiny_model)}, "data": {"train": [str(data)], "validation_fraction": 0.1},
        "adapter": {"rank": 4}, "training": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01,
                                             "warmup_steps": 2, "device": "cpu", "dtype": "fp32",
                                             "checkpoint_every": 5}})
    clients = EngineClient("train"), EngineClient("work")
    window = MainWindow(Operations(*clients), Settings(), themed, config, "pizza")
    window.show()
    yield window
    for client in clients:
        client.close(keep_running=False, grace_seconds=5)
    window.close()
    qtbot.waitUntil(lambda: not window.session.active and not window.operations.busy, timeout=20_000)
    qtbot.wait(50)  # what was posted to its pages still finds them
    window.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def _press(qtbot: QtBot, button: QPushButton) -> None:
    assert button.isVisible(), button.text()
    assert button.isEnabled(), f"{button.text()}: {button.toolTip()}"
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def _button(qtbot: QtBot, parent: QWidget, text: str) -> QPushButton:
    """The button with `text`, once it is in sight."""
    def visible() -> list[QPushButton]:
        return [item for item in parent.findChildren(QPushButton) if text in item.text() and item.isVisible()]

    qtbot.waitUntil(lambda: bool(visible()), timeout=10_000)
    return visible()[0]


def _train(qtbot: QtBot, window: MainWindow) -> Path:
    qtbot.waitUntil(lambda: window.draft.ready, timeout=START_MS)
    _press(qtbot, window.top.start)
    qtbot.waitUntil(lambda: window.session.active, timeout=5_000)
    qtbot.waitUntil(lambda: not window.session.active, timeout=START_MS)
    assert window.session.run_dir is not None
    return window.session.run_dir


def test_train_compare_and_export_merged_with_a_green_receipt(qtbot: QtBot, window: MainWindow,
                                                             tmp_path: Path) -> None:
    run = RunFolder(_train(qtbot, window))
    assert run.path.name == "pizza"
    assert run.state() == "finished"
    steps = [event for event in run.read_events() if isinstance(event, StepDone)]
    assert steps[-1].loss < steps[0].loss
    assert tomllib.loads(run.config_path.read_text())["adapter"]["rank"] == 4

    _press(qtbot, _button(qtbot, window.page("train"), "Chat"))
    chat = window.page("chat")
    qtbot.waitUntil(chat.isVisible, timeout=5_000)
    qtbot.keyClicks(chat.input, "How many pizzas? 7")
    qtbot.keyClick(chat.input, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: chat.busy, timeout=5_000)
    qtbot.waitUntil(lambda: not chat.busy, timeout=START_MS)
    assert len(chat.answers.base.answers()) == len(chat.answers.tuned.answers()) == 1

    window.export(run.path)
    wizard = window.dialog
    assert isinstance(wizard, QWizard)
    _press(qtbot, wizard.button(QWizard.WizardButton.NextButton))
    qtbot.waitUntil(lambda: wizard.currentPage() is wizard.where, timeout=5_000)
    qtbot.mouseClick(wizard.where.cards["merged"], Qt.MouseButton.LeftButton)
    assert wizard.state.choice.to == "merged"
    _press(qtbot, wizard.button(QWizard.WizardButton.NextButton))
    wizard.details.folder.setText(str(tmp_path / "merged"))
    qtbot.waitUntil(wizard.details.isComplete, timeout=5_000)
    _press(qtbot, wizard.button(QWizard.WizardButton.NextButton))
    qtbot.waitUntil(lambda: wizard.currentPage() is wizard.receipt_page, timeout=START_MS)
    receipt = json.loads((tmp_path / "merged" / "receipt.json").read_text())
    assert receipt["passed"] is True
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.full
def test_stop_keeps_the_adapter_and_a_killed_engine_leaves_the_window_alive(qtbot: QtBot, window: MainWindow) -> None:
    window.draft.set_value("training.epochs", 500.0)
    qtbot.waitUntil(lambda: window.draft.ready, timeout=START_MS)
    steps: list[StepDone] = []
    window.session.happened.connect(lambda event: steps.append(event) if isinstance(event, StepDone) else None)
    _press(qtbot, window.top.start)
    qtbot.waitUntil(lambda: len(steps) >= 12, timeout=START_MS)
    run = RunFolder(window.session.run_dir)

    pid = window.operations.client("train").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    qtbot.waitUntil(lambda: not window.session.active, timeout=20_000)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert run.state() == "interrupted"
    qtbot.waitUntil(lambda: window.dialog is not None and window.dialog.isVisible(), timeout=5_000)
    seen = len(steps)
    _press(qtbot, _button(qtbot, window.dialog, "Resume"))
    qtbot.waitUntil(lambda: len(steps) > seen + 3, timeout=START_MS)

    _press(qtbot, window.top.stop)
    qtbot.waitUntil(lambda: not window.session.active, timeout=20_000)
    assert run.state() == "stopped"
    assert (run.adapter / "adapter_model.safetensors").exists()
    numbers = [event.step for event in run.read_events() if isinstance(event, StepDone)]
    assert numbers == list(range(1, len(numbers) + 1))
