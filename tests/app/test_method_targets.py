"""The target layers on the Method page: tree, line, config, problems and counts stay in step."""

import re
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QTreeWidgetItem
from pytestqt.qtbot import QtBot

from app.draft import Draft
from app.memory_probe import MemoryProbe
from app.operations import Operations
from app.pages.method import MethodPage
from core.config import parse_config

FIELD = "adapter.target_modules"


@pytest.fixture
def page(operations: Operations, data_file: Path, qtbot: QtBot) -> MethodPage:
    draft = Draft(operations, debounce_ms=1)
    made = MethodPage(draft, MemoryProbe(draft, operations, draft))
    qtbot.addWidget(made)
    made.resize(900, 700)
    made.show()
    draft.replace(parse_config({"model": {"path": "starter"}, "data": {"train": [str(data_file)]}}))
    qtbot.waitUntil(lambda: draft.ready)
    return made


def kind(page: MethodPage, name: str) -> QTreeWidgetItem:
    return page.tree.tree.findItems(name, Qt.MatchFlag.MatchExactly)[0]


def tick(page: MethodPage, name: str, on: bool, qtbot: QtBot) -> None:
    with qtbot.waitSignal(page.tree.chosen):
        kind(page, name).setCheckState(0, Qt.CheckState.Checked if on else Qt.CheckState.Unchecked)


def write(page: MethodPage, text: str, qtbot: QtBot) -> None:
    page.tree.line.selectAll()
    qtbot.keyClicks(page.tree.line, text)


def trained(page: MethodPage) -> str:
    found = re.match(r"(.+?) of ", page.live.text())
    return found[1] if found else ""


def test_the_line_ticks_the_tree_and_counts_live(page: MethodPage, qtbot: QtBot) -> None:
    draft = page._draft
    write(page, "q_proj, embed_tokens", qtbot)
    assert draft.value(FIELD) == ("q_proj", "embed_tokens") and page.tree.line.text() == "q_proj, embed_tokens"
    assert kind(page, "embed_tokens").checkState(0) == Qt.CheckState.Checked and len(page.tree.ticked()) == 4
    assert trained(page) == "6,656"  # 3 * 8 * (64 + 64) + 8 * (384 + 64)
    tick(page, "embed_tokens", False, qtbot)
    assert draft.value(FIELD) == ("q_proj",) and page.tree.line.text() == "q_proj" and trained(page) == "3,072"
    draft.undo_stack.undo()
    assert page.tree.line.text() == "all-linear" and len(page.tree.ticked()) == 21


def test_problems_stand_at_the_line(page: MethodPage, qtbot: QtBot) -> None:
    draft = page._draft
    write(page, "q_proj, nothing_such", qtbot)
    assert "nothing_such" in page.target_problem.text and page.tree.line.property("wrong") and not draft.ready
    assert kind(page, "q_proj").checkState(0) == Qt.CheckState.Checked
    write(page, "(", qtbot)
    assert "regular expression" in page.target_problem.text and page.tree.line.text() == "("
    draft.set_value("adapter.rank", 4)  # another field's business
    assert page.tree.line.text() == "("
    assert page.show_field(FIELD)
    qtbot.waitUntil(page.tree.line.hasFocus)
    write(page, "q-v", qtbot)
    assert page.target_problem.text == "" and not page.tree.line.property("wrong") and draft.ready
    assert page.tree.presets["q-v"].isChecked() and len(page.tree.ticked()) == 6


def test_an_empty_choice_is_shown_until_it_is_undone(page: MethodPage, qtbot: QtBot) -> None:
    draft = page._draft
    draft.set_value("adapter.rank", 4)
    draft.set_value(FIELD, ("q_proj",))
    tick(page, "q_proj", False, qtbot)
    assert page.target_problem.text and page.tree.line.text() == "" and not page.tree.ticked()
    draft.undo_stack.undo()  # the step before: all linear layers
    assert not page.target_problem.text and len(page.tree.ticked()) == 21 and page.tree.line.text() == "all-linear"
    draft.set_value(FIELD, ("q_proj",))
    tick(page, "q_proj", False, qtbot)
    draft.set_value("adapter.method", "none")
    assert not page.tree.isEnabled() and draft.refused == frozenset() and not page.target_problem.text


def test_another_method_shows_other_modules(page: MethodPage, qtbot: QtBot) -> None:
    draft = page._draft
    draft.set_value("adapter.method", "full")
    assert page.tree.presets["all"].isVisible() and page.tree.presets["all"].isChecked()
    assert page.tree.line.text() == "all" and trained(page) == "135 k"
    tick(page, "embed_tokens", False, qtbot)
    assert "embed_tokens" not in draft.value(FIELD) and "lm_head" in draft.value(FIELD)
    draft.set_value(FIELD, "all-linear")
    draft.set_value("adapter.method", "dora")
    assert page.tree.presets["all"].isHidden()
    assert not page.tree.tree.findItems("embed_tokens", Qt.MatchFlag.MatchExactly)
