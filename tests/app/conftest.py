"""What the tests of the window share."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeClient, make_card
from PySide6.QtCore import QCoreApplication, QEvent
from PySide6.QtGui import QPalette
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot
from shiboken6 import isValid

from app.operations import Operations
from app.theme import Theme
from core import records

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")  # no window may come up while the tests run


@pytest.fixture(autouse=True)
def no_thread_outlives_its_test(qapp: QApplication, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close whatever operations a test has made: their threads would run on into other tests."""
    made: list[Operations] = []
    make = Operations.__init__

    def remember(self: Operations, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(Operations, "__init__", remember)
    yield
    for operations in made:
        if isValid(operations) and operations.busy:
            operations.close(keep_training=False)
            qapp.processEvents()
            assert not operations.busy, "an engine's thread does not end"


@pytest.fixture(autouse=True)
def windows_end_with_their_test(qapp: QApplication) -> Iterator[None]:
    """Delete what a test has left, here and now.

    pytest-qt only asks for it to be deleted, and Python's collector would tear old plots down some time later,
    in the middle of another test. shiboken then takes a new axis at the address of an old one for deleted, and the
    exception within its painting ends in a crash of Qt's painter.
    """
    yield
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    gc.collect()
    gc.freeze()  # what is left lives long: the next collection need not look at it


@pytest.fixture
def themed(qapp: QApplication) -> Iterator[Theme]:
    """The window's look on the test application."""
    theme = Theme(qapp, "light")
    yield theme
    theme.set_scheme("system")
    qapp.styleHints().colorSchemeChanged.disconnect(theme._system_changed)
    theme.deleteLater()
    qapp.setStyleSheet("")  # under a stylesheet a new palette does not reach every widget
    qapp.setPalette(QPalette())


@pytest.fixture
def engines() -> tuple[FakeClient, FakeClient]:
    """The training and the working engine."""
    return FakeClient(), FakeClient()


@pytest.fixture
def operations(engines: tuple[FakeClient, FakeClient], qtbot: QtBot) -> Iterator[Operations]:
    """Operations over engines that answer at once."""
    made = Operations(*engines)
    yield made
    made.close(keep_training=False)
    for _ in range(3):
        QApplication.processEvents()


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """A file that exists; its content is the fake engine's business."""
    file = tmp_path / "train.jsonl"
    file.write_text('{"messages": []}\n')
    return file


@pytest.fixture
def card() -> records.ModelCard:
    """A small Llama."""
    return make_card()
