"""The export wizard: which number type the files come in, how large they are, and what can not be merged."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_engine import make_card
from page_fakes import FakeClient, make_run
from PySide6.QtCore import Qt
from pytestqt.qtbot import QtBot

from app.export_choice import ExportChoice, ExportFacts
from app.export_state import ExportState
from app.export_wizard import ExportWizard
from app.merge_choice import is_quantised
from app.operations import Operations
from core import events, files, jobs
from core.config import FullConfig, LoraConfig, NoAdapterConfig, RunConfig
from core.control import Control
from core.records import AdapterCard, LoaderVerdict
from core.runs.folder import RunFolder

CARD = make_card(parameters=134_515_008, bytes_on_disk=269_000_000, dtype="bf16")
READERS = tuple(LoaderVerdict(name, "exactly", "Fine.") for name in ("peft", "llama.cpp"))
ADAPTER = AdapterCard(Path("/a"), "a", "LoRA", 8, 1000, 1000, "fp32", "", "", loaders=READERS)
COMPATIBLE = replace(ADAPTER, dtype="bf16", compatible=READERS, loaders=(
    READERS[0], LoaderVerdict("llama.cpp", "wrongly", "It scales.")))


def looking(adapter: AdapterCard) -> FakeClient:
    """An engine that tells of this adapter."""
    def script(job: jobs.Job, control: Control) -> Iterator[events.Event]:
        yield events.ModelInspected(CARD) if isinstance(job, jobs.InspectModel) else events.AdapterInspected(adapter)
        yield events.Result()

    return FakeClient(script)


def open_wizard(qtbot: QtBot, run: Path, adapter: AdapterCard) -> ExportWizard:
    wizard = ExportWizard(Operations(looking(adapter), looking(adapter)), run, root=lambda: run.parent)
    qtbot.addWidget(wizard)
    wizard.show()
    settle(qtbot, wizard.state)
    return wizard


def settle(qtbot: QtBot, state: ExportState) -> None:
    qtbot.waitUntil(lambda: state.facts is not None and state.facts.card is not None
                    and state.operations.current("work") is None, timeout=5000)


def bf16_run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "runs", "run", adapter=LoraConfig(save_dtype="bf16"))


def natural(wizard: ExportWizard) -> str:
    return wizard.details.dtype.itemText(0)


def to_details(wizard: ExportWizard) -> None:
    wizard.next()
    wizard.next()


def test_the_adapters_own_type_is_told(qtbot: QtBot, tmp_path: Path) -> None:
    run = bf16_run(tmp_path)
    wizard = open_wizard(qtbot, run.path, replace(ADAPTER, dtype="bf16"))
    to_details(wizard)
    assert natural(wizard) == "As in the run (bf16)" and wizard.state.facts is not None
    assert wizard.state.facts.bytes_of(wizard.state.choice) == 1000
    assert wizard.state.facts.bytes_of(replace(wizard.state.choice, dtype="fp32")) == 2000


def test_a_checkpoint_holds_fp32(qtbot: QtBot, tmp_path: Path) -> None:
    run = bf16_run(tmp_path)
    wizard = open_wizard(qtbot, run.path, ADAPTER)
    wizard.what.picker.choose(run.path, "step-000010")
    assert wizard.state.facts is not None and wizard.state.facts.stored_dtype == "fp32"  # before it was looked at
    settle(qtbot, wizard.state)
    to_details(wizard)
    assert natural(wizard) == "As in the checkpoint (fp32)"
    assert wizard.state.facts.bytes_of(replace(wizard.state.choice, dtype="bf16")) == 500


def test_the_compatible_form_is_computed_in_fp32(qtbot: QtBot, tmp_path: Path) -> None:
    wizard = open_wizard(qtbot, bf16_run(tmp_path).path, COMPATIBLE)
    to_details(wizard)
    details = wizard.details
    assert details.form.currentData() == "compatible" and natural(wizard) == "As it is computed (fp32)"
    assert "About 2 kB" in details.space.text() or "About 2.0 kB" in details.space.text()
    details.form.setCurrentIndex(details.form.findData("peft"))
    assert natural(wizard) == "As in the run (bf16)" and "About 1" in details.space.text()
    details.dtype.setCurrentIndex(details.dtype.findData("bf16"))
    details.form.setCurrentIndex(details.form.findData("compatible"))
    assert details.dtype.currentData() == "bf16"  # what was chosen stays chosen


def test_an_adapter_made_elsewhere_tells_its_own(qtbot: QtBot, tmp_path: Path) -> None:
    wizard = ExportWizard(Operations(looking(ADAPTER), looking(ADAPTER)), root=lambda: tmp_path)
    qtbot.addWidget(wizard)
    wizard.state.choose_elsewhere(replace(ADAPTER, dtype="fp16"), "/models/theirs")
    wizard.show()
    to_details(wizard)
    assert natural(wizard) == "As in the adapter (fp16)"
    settle(qtbot, wizard.state)


@pytest.mark.parametrize("held", ["", "nf4"])
def test_an_adapter_of_a_quantised_base_asks_into_which_weights(held: str, qtbot: QtBot, tmp_path: Path) -> None:
    wizard = ExportWizard(Operations(looking(ADAPTER), looking(ADAPTER)), root=lambda: tmp_path)
    qtbot.addWidget(wizard)
    wizard.state.choose_elsewhere(replace(ADAPTER, quantisation=held), "/models/theirs")
    facts = wizard.state.facts
    assert facts is not None and is_quantised(facts.config) == bool(held)
    settle(qtbot, wizard.state)


@pytest.mark.parametrize(("checkpoint", "kept"), [("", "bf16"), ("step-000010", "fp32")])
def test_after_full_fine_tuning(tmp_path: Path, checkpoint: str, kept: str) -> None:
    facts = ExportFacts(RunConfig(adapter=FullConfig(save_dtype="bf16")), 0, CARD, "fp32" if checkpoint else "")
    choice = ExportChoice(tmp_path, checkpoint, to="merged")
    assert facts.natural_dtype(choice) == kept
    assert facts.bytes_of(choice) == CARD.parameters * {"bf16": 2, "fp32": 4}[kept]


def test_the_compatible_form_is_counted_with_its_padding(tmp_path: Path) -> None:
    facts = ExportFacts(RunConfig(), 1000, compatible_parameters=750)
    choice = ExportChoice(tmp_path, to="adapter")
    assert facts.bytes_of(choice) == 1000
    assert facts.bytes_of(replace(choice, form="compatible")) == 3000
    assert facts.bytes_of(replace(choice, form="compatible", dtype="bf16")) == 1500


@pytest.mark.parametrize("sections", [("prefix",), ("prefix", "bottleneck")])
def test_what_can_not_be_merged_is_said_before(qtbot: QtBot, tmp_path: Path, sections: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "runs", "run", adapter=NoAdapterConfig())
    run.write_config(RunConfig.model_validate({**run.config().model_dump(), **{name: {} for name in sections}}))
    other = make_run(tmp_path / "runs", "other")
    wizard = open_wizard(qtbot, other.path, ADAPTER)
    wizard.state.choose_target("merged")
    wizard.what.picker.choose(run.path)
    wizard.next()
    card = wizard.where.cards["merged"]
    assert not card.radio.isEnabled() and wizard.where.cards["adapter"].radio.isChecked()
    assert wizard.state.choice.to == "adapter"
    assert "no change of the weights" in card.cost.text() and card.cost.text() in card.radio.accessibleDescription()
    assert ("bottleneck adapters" in card.cost.text()) == ("bottleneck" in sections)
    qtbot.mouseClick(card, Qt.MouseButton.LeftButton)
    assert wizard.state.choice.to == "adapter"
    wizard.back()
    wizard.what.picker.choose(other.path)
    wizard.next()
    assert card.radio.isEnabled() and "no change" not in card.cost.text()
    settle(qtbot, wizard.state)


def test_an_imported_prefix_can_not_be_merged_either(qtbot: QtBot, tmp_path: Path) -> None:
    files.write_text(tmp_path / "adapter_config.json", '{"peft_type": "PREFIX_TUNING"}')
    state = ExportState(Operations(looking(ADAPTER), looking(ADAPTER)), ExportChoice(tmp_path, to="merged"))
    state.choose_elsewhere(replace(ADAPTER, path=tmp_path), "/models/theirs")
    assert state.facts is not None and "prefix" in state.facts.unmergeable and state.choice.to == "adapter"
    settle(qtbot, state)
