"""The export wizard after QLoRA and after full fine-tuning."""

from dataclasses import replace
from pathlib import Path

from pytestqt.qtbot import QtBot

from app.export_choice import ExportChoice, ExportFacts
from app.export_pages import DetailsPage, WherePage
from app.export_state import ExportState
from app.merge_choice import MergeChoice
from core.config import FullConfig, LoraConfig, QLoraConfig, RunConfig


def _state(adapter: object, tmp_path: Path) -> ExportState:
    state = ExportState(None, ExportChoice(tmp_path / "run", to="merged"))  # type: ignore[arg-type]
    state.facts = ExportFacts(RunConfig(adapter=adapter), 1000)  # type: ignore[arg-type]
    return state


def test_each_choice_has_its_sentence(qtbot: QtBot) -> None:
    choice = MergeChoice()
    qtbot.addWidget(choice)
    assert choice.value == "original" and "as it is" in choice.sentence.text()
    with qtbot.waitSignal(choice.changed):
        choice.box.setCurrentIndex(1)
    assert choice.value == "dequantised" and "as in Chat" in choice.sentence.text()


def test_the_row_is_shown_for_merged_qlora_runs_alone(qtbot: QtBot, tmp_path: Path) -> None:
    for adapter, to, shown in ((QLoraConfig(), "merged", True), (QLoraConfig(), "adapter", False),
                               (LoraConfig(), "merged", False)):
        state = _state(adapter, tmp_path)
        state.choice = replace(state.choice, to=to, merge_into="dequantised")  # type: ignore[arg-type]
        page = DetailsPage(state)
        qtbot.addWidget(page)
        page.initializePage()
        page.show()
        assert page.merge.isVisible() == shown
        assert state.choice.merge_into == ("dequantised" if shown else "original")


def test_the_choice_reaches_the_job_and_the_command(tmp_path: Path) -> None:
    choice = ExportChoice(tmp_path / "run", to="merged", out=tmp_path / "out", merge_into="dequantised")
    assert choice.job().merge_into == "dequantised"
    assert "--merge-into dequantised" in choice.command()
    assert replace(choice, to="adapter").job().merge_into == "original"
    assert "--merge-into" not in replace(choice, to="adapter").command()


def test_a_fine_tuned_run_offers_no_adapter(qtbot: QtBot, tmp_path: Path) -> None:
    page = WherePage(_state(FullConfig(), tmp_path))
    qtbot.addWidget(page)
    page.initializePage()
    page.show()
    assert not page.cards["adapter"].isVisible()
    assert page.cards["merged"].isVisible()
