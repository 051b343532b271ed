"""The Model page: the list, wrong files, imports that are cancelled or fail, the hub."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeClient
from PySide6.QtCore import Qt
from pytestqt.qtbot import QtBot

from app.draft import Draft
from app.hub_dialog import HubDialog
from app.memory_probe import MemoryProbe
from app.operations import Operations
from app.pages.model import BUSY, ModelPage
from core import events, jobs
from core.control import Control
from core.errors import Cancelled


def until_stopped(job: jobs.Job, control: Control) -> Iterator[events.Event]:
    yield events.Progress("Dequantising", 1, 272, "tensors")
    while not control.stop_requested:
        time.sleep(0.005)
    raise Cancelled()


@pytest.fixture
def page(operations: Operations, qtbot: QtBot) -> ModelPage:
    draft = Draft(operations, debounce_ms=1)
    made = ModelPage(draft, operations, MemoryProbe(draft, operations, draft))
    qtbot.addWidget(made)
    made.show()
    qtbot.waitUntil(lambda: made.models.entry("starter") is not None)
    return made


def chosen(page: ModelPage) -> str:
    return page._draft.config.model.path


def test_a_file_that_is_no_model_changes_nothing_and_is_told(page: ModelPage, tmp_path: Path) -> None:
    page.take(tmp_path / "notes.txt")
    assert chosen(page) == "" and "notes.txt is not a model" in page.notice.text() and page.notice.isVisible()


def test_a_file_of_a_model_folder_chooses_the_folder(page: ModelPage, tmp_path: Path, qtbot: QtBot) -> None:
    (tmp_path / "config.json").write_text("{}")
    page.take(tmp_path / "model.safetensors")
    assert chosen(page) == str(tmp_path)
    entry = page.models.entry(str(tmp_path))
    assert entry is not None and entry.origin == "folder"
    page.models.chosen.emit("starter")
    page.refresh()
    qtbot.waitUntil(lambda: page.models.list.count() == 2)  # the folder stays to be chosen again
    assert page.models.list.currentItem() is not None


def test_an_import_is_cancelled_in_words_and_loses_nothing(page: ModelPage, engines: tuple[FakeClient, FakeClient],
                                                           tmp_path: Path, qtbot: QtBot) -> None:
    engines[1].answers[jobs.ImportGguf] = until_stopped
    page._draft.set_value("model.path", "starter")
    page.take(tmp_path / "model.gguf")
    qtbot.waitUntil(lambda: "1 of 272 tensors" in page.strip.detail.full_text)
    assert not page.hub_button.isEnabled()
    page.take(tmp_path / "other.gguf")
    assert page.notice.text() == BUSY
    qtbot.mouseClick(page.strip.cancel_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not page.strip.busy)
    assert "model.gguf was cancelled" in page.notice.text()
    assert chosen(page) == "starter" and page.hub_button.isEnabled()


def test_a_failed_import_goes_to_the_window_and_the_page_works_on(page: ModelPage, tmp_path: Path, qtbot: QtBot,
                                                                  engines: tuple[FakeClient, FakeClient],
                                                                  operations: Operations) -> None:
    engines[1].answers[jobs.ImportGguf] = [events.Failed("model.gguf is damaged.", "Fetch it again.")]
    with qtbot.waitSignal(operations.failed) as told:
        page.take(tmp_path / "model.gguf")
    assert told.args[0].message == "model.gguf is damaged."
    qtbot.waitUntil(lambda: not page.strip.busy)
    assert page.gguf_button.isEnabled() and not page.strip.isVisible()


def test_a_model_of_the_hub_is_fetched_and_chosen(page: ModelPage, engines: tuple[FakeClient, FakeClient],
                                                  qtbot: QtBot) -> None:
    engines[1].answers[jobs.DownloadModel] = [events.Result({"name": "tiny", "path": "/models/tiny"})]
    qtbot.mouseClick(page.hub_button, Qt.MouseButton.LeftButton)
    (dialog,) = page.findChildren(HubDialog)
    qtbot.keyClicks(dialog.repo, "no id at all!")
    qtbot.mouseClick(dialog.get_button, Qt.MouseButton.LeftButton)
    assert dialog.isVisible() and "owner/name" in dialog.problem.text
    dialog.repo.setText("https://huggingface.co/someone/tiny")
    qtbot.mouseClick(dialog.get_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: chosen(page) == "tiny")
    assert jobs.DownloadModel("someone/tiny", "main") in engines[1].jobs
    qtbot.waitUntil(lambda: not page.findChildren(HubDialog))


def test_a_search_without_a_find_says_so(page: ModelPage) -> None:
    assert not page.models.nothing.isVisible()
    page.models.search.setText("zzz")
    assert page.models.nothing.isVisible()
    page.models.search.clear()
    assert not page.models.nothing.isVisible()
