"""The Runs page: the list, ticks, overlay, differences, actions."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from page_fakes import make_run, planned, step_done
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QMessageBox
from pytestqt.qtbot import QtBot

from app.pages import runs as runs_page
from app.pages.runs import RunsPage
from app.run_difference import differing_fields, value_text
from app.run_table import MOST_TICKED, when
from core import events, files
from core.config import RunConfig
from core.runs.history import RunSummary

MARKUP = "<b>bold & <img src=x>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make_run(root, "one", rank=8)
    make_run(root, "two", rank=16, rate=5e-4)
    broken_off = [events.Started("Train", None, 900.0), planned(), *(step_done(n) for n in range(1, 6))]
    make_run(root, MARKUP, broken_off)
    return root


@pytest.fixture
def page(qtbot: QtBot, root: Path) -> RunsPage:
    made = RunsPage(lambda: root)
    qtbot.addWidget(made)
    made.resize(1080, 690)
    made.show()
    qtbot.waitUntil(lambda: len(made.model.runs) == 3, timeout=5000)
    return made


def cells(page: RunsPage, name: str) -> list[str]:
    row = next(row for row, run in enumerate(page.model.runs) if run.name == name)
    return [page.model.index(row, column).data() for column in range(page.model.columnCount())]


def test_every_run_is_listed(page: RunsPage) -> None:
    name, state, _, _, steps, loss, validation, method, model = cells(page, "two")
    assert (name, state, steps, loss, validation, method, model) == (
        "two", "finished", "10 of 100", "0.200", "0.500", "lora, rank 16", "SmolLM2")
    assert cells(page, MARKUP)[:2] == [MARKUP, "broke off"]


def test_empty_state(qtbot: QtBot, tmp_path: Path) -> None:
    page = RunsPage(lambda: tmp_path / "nothing")
    qtbot.addWidget(page)
    page.show()
    qtbot.waitUntil(page.empty.isVisible, timeout=5000)
    with qtbot.waitSignal(page.start_requested):
        page.empty.button.click()
    with qtbot.waitSignal(page.elsewhere_requested) as asked:
        page.empty.link.click()
    assert asked.args == [None]


def test_ticked_runs_lie_over_each_other(page: RunsPage, root: Path, qtbot: QtBot) -> None:
    for run in page.model.runs:
        page.model.tick(run.folder)
    qtbot.waitUntil(lambda: len(page.overlay.curves) == 3, timeout=5000)
    assert len({curve.color for curve in page.overlay.curves}) == 3
    page.overlay.group.point_at(3)
    assert len(page.overlay.read_out.texts()) == 3 and "—" not in page.overlay.read_out.texts()
    page.overlay.quantity.setCurrentIndex(1)
    page.overlay.group.point_at(None)
    assert "0.5000" in page.overlay.read_out.texts()
    page.grab()
    page.model.tick(root / "one", on=False)
    assert len(page.overlay.curves) == 2


def test_only_what_differs_is_shown(page: RunsPage, root: Path) -> None:
    for run in page.model.runs:
        page.model.tick(run.folder, on=False)
    assert page.difference.rows() == []
    page.model.tick(root / "two")
    told = [line[0] for line in page.difference.rows()]
    assert "Rank" in told and "Alpha" not in told  # one run: what is not the default
    page.model.tick(root / "one")
    assert [sorted(line[1:]) for line in page.difference.rows()] == [["16", "8"], ["0.0002", "0.0005"]]
    page.model.tick(root / "two", on=False)
    page.model.tick(root / "two")
    assert page.difference.rows() == [["Rank", "8", "16"], ["Learning rate", "0.0002", "0.0005"]]


def test_too_many_ticks_are_refused(page: RunsPage, root: Path, qtbot: QtBot) -> None:
    for number in range(MOST_TICKED):
        shutil.copytree(root / "one", root / f"copy {number}")
    page.refresh()
    qtbot.waitUntil(lambda: len(page.model.runs) == 3 + MOST_TICKED, timeout=5000)
    for run in page.model.runs:
        page.model.tick(run.folder)
    assert len(page.model.ticked_runs()) == MOST_TICKED
    assert "12" in page.message.text()


def test_actions_name_the_run(page: RunsPage, root: Path, qtbot: QtBot) -> None:
    page.table.select(root / "two")
    actions = page._actions
    assert [key for key, made in actions.items() if not made.isEnabled()] == ["continue"]
    for key, signal in (("open", page.open_requested), ("chat", page.chat_requested),
                        ("export", page.export_requested)):
        with qtbot.waitSignal(signal) as asked:
            actions[key].click()
        assert asked.args == [root / "two"]
    with qtbot.waitSignal(page.repeat_requested) as asked:
        actions["repeat"].click()
    assert isinstance(asked.args[0], RunConfig) and asked.args[0].adapter.rank == 16
    page.table.select(root / MARKUP)
    with qtbot.waitSignal(page.resume_requested) as asked:
        actions["continue"].click()
    assert asked.args == [root / MARKUP]


def test_a_run_that_is_trained_is_not_touched(page: RunsPage, root: Path, qtbot: QtBot) -> None:
    with files.exclusive_lock(root / "one" / ".lock", "busy"):
        page.refresh()
        qtbot.waitUntil(lambda: cells(page, "one")[1] == "running", timeout=5000)
        page.table.select(root / "one")
        assert not any(page._actions[key].isEnabled() for key in ("rename", "delete", "export", "continue"))


def test_rename(page: RunsPage, root: Path, qtbot: QtBot) -> None:
    page.model.tick(root / "two")
    row = next(row for row, run in enumerate(page.model.runs) if run.name == "two")
    with qtbot.waitSignal(page.renamed) as told:
        page.model.setData(page.model.index(row, 0), "better name")
    assert told.args == [root / "two", root / "better name"]
    qtbot.waitUntil(lambda: any(run.name == "better name" for run in page.model.runs), timeout=5000)
    assert "better name" in [run.name for run, _ in page.model.ticked_runs()]
    row = next(row for row, run in enumerate(page.model.runs) if run.name == "better name")
    page.model.setData(page.model.index(row, 0), "one")
    assert "already" in page.message.text() and (root / "better name").is_dir()


def test_delete_asks_and_goes_to_the_trash(page: RunsPage, root: Path, tmp_path: Path, qtbot: QtBot,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    trash = tmp_path / "trash"
    monkeypatch.setattr(runs_page, "send2trash", lambda path: shutil.move(path, trash))
    page.table.select(root / MARKUP)
    boxes: list[QMessageBox] = []

    def answer(box: QMessageBox, yes: bool) -> int:
        boxes.append(box)
        move = [box.buttonRole(one) == QMessageBox.ButtonRole.DestructiveRole for one in box.buttons()]
        box.buttons()[move.index(yes)].click()
        return 0

    monkeypatch.setattr(QMessageBox, "exec", lambda box: answer(box, False))
    page._actions["delete"].click()
    assert (root / MARKUP).is_dir()
    assert boxes[0].textFormat() == Qt.TextFormat.PlainText and MARKUP in boxes[0].text()
    monkeypatch.setattr(QMessageBox, "exec", lambda box: answer(box, True))
    with qtbot.waitSignal(page.deleted, timeout=5000):
        page._actions["delete"].click()
    assert not (root / MARKUP).exists() and trash.is_dir()
    qtbot.waitUntil(lambda: len(page.model.runs) == 2, timeout=5000)


def test_a_trash_that_refuses_is_said(page: RunsPage, root: Path, qtbot: QtBot,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(13, "no trash here")

    monkeypatch.setattr(runs_page, "send2trash", refuse)
    monkeypatch.setattr(RunsPage, "_confirmed", lambda _self, _run: True)
    page.table.select(root / "one")
    page._actions["delete"].click()
    qtbot.waitUntil(lambda: page.message.property("role") == "error", timeout=5000)
    assert (root / "one").is_dir()


def test_damaged_runs_are_listed_as_such(page: RunsPage, root: Path, qtbot: QtBot) -> None:
    (root / "two" / "run.toml").write_text("= nonsense <b>")
    page.refresh()
    qtbot.waitUntil(lambda: cells(page, "two")[1] == "damaged", timeout=5000)
    page.table.select(root / "two")
    assert not page._actions["open"].isEnabled() and page._actions["delete"].isEnabled()
    row = next(row for row, run in enumerate(page.model.runs) if run.name == "two")
    assert "<b>" not in page.model.index(row, 0).data(Qt.ItemDataRole.ToolTipRole)
    page.model.tick(root / "two")
    page.grab()


def test_table_sorts_by_numbers_not_by_words(page: RunsPage, root: Path) -> None:
    page.table.sortByColumn(7, Qt.SortOrder.AscendingOrder)
    proxy = page.table.model()
    methods = [proxy.index(row, 7).data() for row in range(proxy.rowCount())]
    assert methods == ["lora, rank 8", "lora, rank 8", "lora, rank 16"]


def test_values_and_differences_in_words() -> None:
    assert value_text(None) == "—" and value_text(2e-4) == "0.0002" and value_text(("a/b.json", "c")) == "b.json, c"
    assert differing_fields([RunConfig(), RunConfig()]) == []
    assert when(0) == "" and when(time.time()).startswith("today ")
    assert " 1971 " in when(86400 * 380)


def test_a_folder_that_can_not_be_listed_is_told_where_it_is_seen(qtbot: QtBot, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_root: Path, _others: list[Path]) -> list[RunSummary]:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    listed = runs_page.list_runs
    monkeypatch.setattr(runs_page, "list_runs", refuse)
    page = RunsPage(lambda: tmp_path)
    qtbot.addWidget(page)
    page.show()
    qtbot.waitUntil(page.empty.isVisible, timeout=5000)
    assert "No permission" in page.empty.sentence.text()
    monkeypatch.setattr(runs_page, "list_runs", listed)
    page.refresh()
    qtbot.waitUntil(lambda: "no runs yet" in page.empty.sentence.text(), timeout=5000)


def test_one_run_is_deleted_at_a_time(page: RunsPage, root: Path, qtbot: QtBot,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    gate, gone = threading.Event(), []

    def slow(path: Path) -> None:
        gate.wait(5)
        gone.append(path.name)
        shutil.rmtree(path)

    monkeypatch.setattr(runs_page, "send2trash", slow)
    monkeypatch.setattr(page, "_confirmed", lambda _run: True)
    for name in ("one", "two"):
        page.table.select(root / name)
        page.delete_selected()
        assert not page._actions["delete"].isEnabled()
    gate.set()
    qtbot.waitUntil(page._actions["delete"].isEnabled, timeout=5000)
    assert gone == ["one"] and (root / "two").is_dir()
