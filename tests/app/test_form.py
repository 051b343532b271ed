"""The form comes from the config models alone."""

from typing import Literal

import pytest
from pydantic import create_model
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLineEdit, QPlainTextEdit, QSpinBox
from pytestqt.qtbot import QtBot

from app.choice_fields import BoolEditor, PathsEditor
from app.fields import make_editor
from app.form import Form
from app.number_boxes import scientific
from app.number_fields import FloatEditor, IntEditor, OptionalIntEditor
from core.config import DataConfig, LoraConfig, Section, TrainingConfig, option
from core.run_problems import Problem


@pytest.mark.parametrize("model", [DataConfig, LoraConfig, TrainingConfig])
def test_every_field_has_an_editor_with_its_words(model: type[Section], qtbot: QtBot) -> None:
    form = Form("section", model)
    qtbot.addWidget(form)
    assert set(form.fields) == {f"section.{name}" for name in model.model_fields}
    for path, field in form.fields.items():
        info = model.model_fields[path.split(".")[1]]
        assert field.editor.input.accessibleName() == info.title
        assert (info.description or "") in field.editor.input.accessibleDescription()
        assert field.editor.toolTip() and field.editor.whatsThis()
    form.set_values(model())
    for path, field in form.fields.items():
        assert field.editor.value() == getattr(model(), path.split(".")[1])


def test_a_new_field_appears_with_its_limits(qtbot: QtBot) -> None:
    heads = option(4, "Heads", "How many heads.", group="Adapter", unit="heads", ge=2, le=12)
    model = create_model("Extended", __base__=LoraConfig, heads=(int, heads))
    form = Form("adapter", model)
    qtbot.addWidget(form)
    editor = form.fields["adapter.heads"].editor
    box = editor.findChild(QSpinBox)
    assert isinstance(editor, IntEditor) and box is not None
    assert (box.minimum(), box.maximum()) == (2, 12)
    assert "How many heads." in editor.toolTip() and "From 2 to 12." in editor.toolTip()
    form.set_values(model())
    with qtbot.waitSignal(form.changed) as caught:
        box.setValue(7)
    assert caught.args == ["adapter.heads", 7]


def test_rare_fields_are_folded_until_asked_for(qtbot: QtBot) -> None:
    form = Form("training", TrainingConfig)
    qtbot.addWidget(form)
    form.show()
    assert form.fields["training.epochs"].isVisible()
    assert not form.fields["training.seed"].isVisible()
    qtbot.mouseClick(form.more, Qt.MouseButton.LeftButton)
    assert form.fields["training.seed"].isVisible()
    qtbot.mouseClick(form.more, Qt.MouseButton.LeftButton)
    assert form.show_field("training.seed") and form.fields["training.seed"].isVisible()
    assert not form.show_field("training.nothing")


def test_problems_stand_at_their_field_with_a_sign(qtbot: QtBot) -> None:
    form = Form("adapter", LoraConfig)
    qtbot.addWidget(form)
    form.show()
    rank = form.fields["adapter.rank"]
    form.set_problems([Problem("adapter.rank", "Too high.", "Choose 8.")])
    assert rank.problem.text == "Too high. Choose 8." and rank.problem.isVisible()
    assert rank.editor.input.property("wrong") is True
    form.set_problems([], [Problem("adapter.rank", "Unwise.")])
    assert rank.problem.text == "Unwise." and rank.editor.input.property("wrong") is False
    form.set_problems([])
    assert not rank.problem.isVisible()


def test_learning_rates_are_written_and_read_scientifically(qtbot: QtBot) -> None:
    editor = make_editor(TrainingConfig.model_fields["learning_rate"])
    qtbot.addWidget(editor)
    editor.set_value(2e-4)
    line = editor.input.findChild(QLineEdit)
    assert isinstance(editor, FloatEditor) and line is not None and line.text() == "2e-4"
    line.selectAll()
    with qtbot.waitSignal(editor.changed) as caught:
        qtbot.keyClicks(line, "5.5e-5")
        qtbot.keyClick(line, Qt.Key.Key_Return)
    assert caught.args == [5.5e-5]
    qtbot.keyClick(line, Qt.Key.Key_Up)
    assert editor.value() == 1e-4
    qtbot.keyClick(line, Qt.Key.Key_Down)
    assert editor.value() == 5e-5
    assert [scientific(value) for value in (0.0, 0.05, 1.5e-3)] == ["0", "0.05", "1.5e-3"]


def test_an_optional_number_may_be_empty_and_refuses_words(qtbot: QtBot) -> None:
    editor = make_editor(LoraConfig.model_fields["last_layer"])
    qtbot.addWidget(editor)
    line = editor.findChild(QLineEdit)
    assert isinstance(editor, OptionalIntEditor) and line is not None and editor.value() is None
    with qtbot.waitSignal(editor.changed) as caught:
        qtbot.keyClicks(line, "3")
    assert caught.args == [3]
    with qtbot.waitSignal(editor.refused):
        qtbot.keyClicks(line, "x")
    with qtbot.waitSignal(editor.changed) as caught:
        line.clear()
        qtbot.keyClicks(line, " ")
    assert caught.args == [None]


def test_what_is_no_value_gives_way_once_it_is_forgotten(qtbot: QtBot) -> None:
    form = Form("adapter", LoraConfig)
    qtbot.addWidget(form)
    text = form.fields["adapter.rank_pattern"].editor.findChild(QPlainTextEdit)
    assert text is not None
    text.setPlainText("junk")
    form.set_values(LoraConfig(), {"adapter.rank_pattern"})
    assert text.toPlainText() == "junk"
    form.set_values(LoraConfig())  # undone, or left out and brought back
    assert text.toPlainText() == ""


def test_alphas_by_name_keep_all_their_digits(qtbot: QtBot) -> None:
    editor = make_editor(LoraConfig.model_fields["alpha_pattern"])
    qtbot.addWidget(editor)
    text = editor.findChild(QPlainTextEdit)
    alphas = {"q_proj": 0.123456789, "v_proj": 1234.5678, "up_proj": 16.0}
    editor.set_value(alphas)
    assert text is not None and text.toPlainText() == "q_proj = 0.123456789\nv_proj = 1234.5678\nup_proj = 16"
    assert editor.value() == alphas


def test_other_kinds_of_fields(qtbot: QtBot) -> None:
    class Kinds(Section):
        yes: bool = option(True, "Yes", "A switch.")
        files: tuple[str, ...] = option((), "Files", "Some files.")
        kind: Literal["a", "b"] = option("a", "Kind", "A choice.")

    form = Form("kinds", Kinds)
    qtbot.addWidget(form)
    yes, files = form.fields["kinds.yes"].editor, form.fields["kinds.files"].editor
    assert isinstance(yes, BoolEditor) and isinstance(files, PathsEditor)
    form.set_values(Kinds(yes=False, files=("a b.txt", "c"), kind="b"))
    assert (yes.value(), files.value(), form.fields["kinds.kind"].editor.value()) == (False, ("a b.txt", "c"), "b")
    with pytest.raises(TypeError):
        make_editor(create_model("Odd", odd=(dict, {})).model_fields["odd"])
