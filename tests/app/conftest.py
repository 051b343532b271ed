"""What the tests of the window share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeClient, make_card
from PySide6.QtGui import QPalette
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app.operations import Operations
from app.theme import Theme
from core import records

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")  # no window may come up while the tests run


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
