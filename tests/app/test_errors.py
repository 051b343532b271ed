"""Reports hold what a developer needs and nothing that is the person's own."""

import sys
import threading
from pathlib import Path

import pytest
from PySide6.QtGui import QGuiApplication
from pytestqt.qtbot import QtBot

from app.errors import ErrorDialog, ErrorHooks, redact, report
from core.events import Failed


def test_paths_and_tokens_are_taken_out() -> None:
    secret = "hf_" + "AbCdEfGhIjKl"
    text = (f'File "{Path.home()}/private/project/app/window.py", line 3\n'
            f"token={secret} Authorization: Bearer{secret}\nC:\\Users\\anna\\models\\x\\file.bin\n"
            f"https://huggingface.co/a/b and 1/2 done, key {'0a' * 20}")
    clean = redact(text)
    assert secret not in clean and "0a0a" not in clean and "private" not in clean
    assert "anna" not in clean and str(Path.home()) + "/" not in clean
    assert "app/window.py" in clean and "line 3" in clean and "file.bin" in clean
    assert "https://huggingface.co/a/b" in clean and "1/2 done" in clean


def test_a_report_names_versions_and_details() -> None:
    text = report(Failed("It broke.", "Try again.", "Traceback: here"))
    for part in ("It broke.", "Try again.", "Traceback: here", "Python 3", "PySide6-Essentials 6", "torch 2"):
        assert part in text


def test_the_dialog_says_a_sentence_and_copies_the_report(qtbot: QtBot) -> None:
    dialog = ErrorDialog(Failed("<b>It</b> broke.", "Try <img src=x>.", "details"), resumable=True)
    qtbot.addWidget(dialog)
    dialog.show()
    assert dialog.resume_button.isVisible()
    dialog.copy_button.click()
    assert QGuiApplication.clipboard().text().startswith("<b>It</b> broke.")


def test_exceptions_of_any_thread_reach_the_window(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *given: terminal.append(given[0]))
    hooks = ErrorHooks()
    hooks.install()
    try:
        with qtbot.waitSignal(hooks.failed) as caught:
            thread = threading.Thread(target=lambda: 1 / 0)
            thread.start()
            thread.join()
        assert "ZeroDivisionError" in caught.args[0].details and terminal == [ZeroDivisionError]
    finally:
        hooks.remove()
