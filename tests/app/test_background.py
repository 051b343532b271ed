"""Slow functions away from the window's thread."""

import threading

from PySide6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot

from app.background import Background


def test_the_newest_answer_counts(qtbot: QtBot) -> None:
    page = QWidget()
    qtbot.addWidget(page)
    background, gate, got = Background(page), threading.Event(), []
    background.call(lambda: (gate.wait(5), "first")[1], got.append, got.append)
    background.call(lambda: "second", got.append, got.append)
    background.call(lambda: "third", got.append, got.append)
    assert background.busy
    gate.set()
    qtbot.waitUntil(lambda: bool(got) and not background.busy, timeout=5000)
    assert got == ["third"]


def test_an_exception_becomes_one_failure(qtbot: QtBot) -> None:
    page = QWidget()
    qtbot.addWidget(page)
    background, failures = Background(page), []
    background.call(lambda: 1 / 0, lambda _: None, failures.append)
    qtbot.waitUntil(lambda: bool(failures), timeout=5000)
    assert "ZeroDivisionError" in failures[0].message and not background.busy


def test_a_new_call_may_follow_from_the_answer(qtbot: QtBot) -> None:
    page = QWidget()
    qtbot.addWidget(page)
    background, got = Background(page), []
    background.call(lambda: 1, lambda one: background.call(lambda: one + 1, got.append, got.append), got.append)
    qtbot.waitUntil(lambda: got == [2], timeout=5000)


def test_a_page_may_go_while_its_function_runs(qtbot: QtBot) -> None:
    page = QWidget()
    background, gate, got = Background(page), threading.Event(), []
    background.call(lambda: gate.wait(5), got.append, got.append)
    page.deleteLater()
    qtbot.wait(50)
    gate.set()
    qtbot.wait(100)
    assert not got
