"""Ticks and presets of the target tree, and what they become in the config."""

from collections.abc import Sequence

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QTreeWidgetItem
from pytestqt.qtbot import QtBot

from app.target_choice import as_config, group_modules, parse_targets, selected, shown_modules, targets_text
from app.target_tree import TargetTree
from core.config import AdaLoraConfig, DoraConfig, FullConfig, LoraConfig
from core.records import ModelCard, ModuleInfo
from core.targets import select_targets

Checked, Unchecked, Partly = Qt.CheckState.Checked, Qt.CheckState.Unchecked, Qt.CheckState.PartiallyChecked


@pytest.fixture
def tree(qtbot: QtBot, card: ModelCard) -> TargetTree:
    made = TargetTree()
    qtbot.addWidget(made)
    made.set_modules(card.modules)
    return made


def kind(tree: TargetTree, name: str) -> QTreeWidgetItem:
    return tree.tree.findItems(name, Qt.MatchFlag.MatchExactly)[0]


def test_rows_are_kinds_with_their_layers(tree: TargetTree) -> None:
    names = [tree.tree.topLevelItem(number).text(0) for number in range(tree.tree.topLevelItemCount())]
    assert names == ["embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
                     "lm_head"]
    assert [kind(tree, "q_proj").child(number).text(0) for number in range(3)] == ["Layer 0", "Layer 1", "Layer 2"]
    assert kind(tree, "embed_tokens").text(1) == "384 → 64" and kind(tree, "embed_tokens").checkState(0) == Unchecked
    assert kind(tree, "k_proj").text(1) == "64 → 32"
    assert kind(tree, "q_proj").checkState(0) == Checked  # all-linear is the default
    assert kind(tree, "lm_head").checkState(0) == Unchecked
    assert kind(tree, "q_proj").child(0).text(2) == "1,024"  # 8 * (64 + 64)


@pytest.mark.parametrize(("preset", "ticked"), [("q-v", 6), ("attention", 12), ("all-linear", 21)])
def test_presets_are_written_by_their_name(tree: TargetTree, preset: str, ticked: int, qtbot: QtBot) -> None:
    with qtbot.waitSignal(tree.chosen) as caught:
        qtbot.mouseClick(tree.presets[preset], Qt.MouseButton.LeftButton)
    assert caught.args == [{"adapter.target_modules": preset}]
    tree.set_adapter(LoraConfig(target_modules=preset))
    assert len(tree.ticked()) == ticked
    assert [name for name, made in tree.presets.items() if made.isChecked()] == [preset]


def test_a_kind_ticks_all_its_layers_in_one_step(tree: TargetTree, qtbot: QtBot) -> None:
    tree.set_adapter(LoraConfig(target_modules=("q_proj",)))
    said: list[dict[str, object]] = []
    tree.chosen.connect(said.append)
    kind(tree, "down_proj").setCheckState(0, Checked)
    qtbot.waitUntil(lambda: bool(said))
    assert said == [{"adapter.target_modules": ("q_proj", "down_proj")}]


def test_one_layer_makes_its_kind_partly_ticked_and_full_names(tree: TargetTree, qtbot: QtBot) -> None:
    tree.set_adapter(LoraConfig(target_modules="q-v"))
    with qtbot.waitSignal(tree.chosen) as caught:
        kind(tree, "q_proj").child(1).setCheckState(0, Unchecked)
    assert kind(tree, "q_proj").checkState(0) == Partly
    assert caught.args[0]["adapter.target_modules"] == (
        "model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj", "v_proj")
    assert not any(made.isChecked() for made in tree.presets.values())


def test_ticking_back_to_a_preset_is_written_as_the_preset(tree: TargetTree, qtbot: QtBot) -> None:
    tree.set_adapter(LoraConfig(target_modules=("q_proj",)))
    with qtbot.waitSignal(tree.chosen) as caught:
        kind(tree, "v_proj").setCheckState(0, Checked)
    assert caught.args == [{"adapter.target_modules": "q-v"}]
    assert tree.presets["q-v"].isChecked()


def test_a_tick_outside_the_layer_range_opens_the_range(card: ModelCard) -> None:
    adapter = LoraConfig(target_modules="q-v", first_layer=1)
    ticked = {module.name for module in select_targets(card.modules, adapter)}
    assert as_config(adaptable(card.modules), ticked, adapter) == {"adapter.target_modules": "q-v"}
    values = as_config(adaptable(card.modules), {*ticked, "model.layers.0.self_attn.q_proj"}, adapter)
    assert (values["adapter.first_layer"], values["adapter.last_layer"]) == (0, None)
    assert values["adapter.target_modules"] == (
        "q_proj", "model.layers.1.self_attn.v_proj", "model.layers.2.self_attn.v_proj")


def test_what_is_written_chooses_what_was_ticked(card: ModelCard) -> None:
    modules = adaptable(card.modules)
    for number in range(1, 2 ** 7, 9):
        kinds = [name for bit, name in enumerate(group_modules(modules)) if number >> bit & 1]
        ticked = {module.name for module in modules if module.kind in kinds and module.layer != number % 4}
        if ticked:
            values = as_config(modules, ticked, LoraConfig())
            chosen = LoraConfig(target_modules=values["adapter.target_modules"])  # type: ignore[arg-type]
            assert {module.name for module in select_targets(modules, chosen)} == ticked


def test_one_name_in_two_places_stays_two_kinds() -> None:
    modules = [ModuleInfo(f"transformer.h.{layer}.{part}.c_proj", "c_proj", layer, "Conv1D", 8, 8, 64)
               for layer in range(2) for part in ("attn", "mlp")]
    assert {name: len(members) for name, members in group_modules(modules).items()} == {
        "attn.c_proj": 2, "mlp.c_proj": 2}
    values = as_config(modules, {"transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"}, LoraConfig())
    assert values == {"adapter.target_modules": "attention"}
    values = as_config(modules, {"transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"}, LoraConfig())
    assert values == {"adapter.target_modules": ("mlp.c_proj",)}


def adaptable(modules: Sequence[ModuleInfo]) -> list[ModuleInfo]:
    return [module for module in modules if module.type in ("Linear", "Conv1D")]


# --- what is no linear layer, and what is outside of the tree ------------------------------------


def with_norms(card: ModelCard) -> tuple[ModuleInfo, ...]:
    norms = [ModuleInfo(f"model.layers.{layer}.input_layernorm", "input_layernorm", layer, "Other", 0, 0, 64)
             for layer in range(3)]
    return (*card.modules, *norms, ModuleInfo("model.norm", "norm", -1, "Other", 0, 0, 64))


def test_an_embedding_of_a_run_file_is_ticked_and_stays(tree: TargetTree, qtbot: QtBot) -> None:
    tree.set_adapter(LoraConfig(target_modules=("q_proj", "embed_tokens")))
    assert kind(tree, "embed_tokens").checkState(0) == Checked and kind(tree, "q_proj").checkState(0) == Checked
    assert kind(tree, "embed_tokens").text(2) == "3,584"  # 8 * (384 + 64)
    with qtbot.waitSignal(tree.chosen) as caught:
        kind(tree, "v_proj").setCheckState(0, Checked)
    assert caught.args == [{"adapter.target_modules": ("embed_tokens", "q_proj", "v_proj")}]


def test_names_that_no_box_stands_for_are_kept(tree: TargetTree, qtbot: QtBot) -> None:
    tree.set_adapter(LoraConfig(target_modules=("q_proj", "of_another_model")))
    assert kind(tree, "q_proj").checkState(0) == Checked
    with qtbot.waitSignal(tree.chosen) as caught:
        kind(tree, "v_proj").setCheckState(0, Checked)
    assert caught.args == [{"adapter.target_modules": ("q_proj", "v_proj", "of_another_model")}]
    tree.set_adapter(DoraConfig(target_modules=("q_proj", "embed_tokens")))  # which DoRA can not adapt
    assert not tree.tree.findItems("embed_tokens", Qt.MatchFlag.MatchExactly)
    with qtbot.waitSignal(tree.chosen) as caught:
        kind(tree, "q_proj").setCheckState(0, Unchecked)
    assert caught.args == [{"adapter.target_modules": ("embed_tokens",)}]


def test_each_method_shows_what_it_can_change(card: ModelCard) -> None:
    experts = ModuleInfo("model.layers.0.mlp.experts.up", "up", 0, "Experts", 64, 128, 64 * 128 * 4, experts=4)
    modules = (*with_norms(card), experts, ModuleInfo("conv", "conv", -1, "Conv1d", 8, 8, 64))
    def beside(adapter: LoraConfig | DoraConfig | AdaLoraConfig | FullConfig) -> set[str]:
        return {module.type for module in shown_modules(modules, adapter)} - {"Linear"}
    assert beside(FullConfig()) == {"Embedding", "Experts", "Conv1d", "Other"}
    assert beside(LoraConfig()) == {"Embedding", "Experts", "Conv1d"}
    assert beside(DoraConfig()) == beside(AdaLoraConfig()) == set()


def test_full_fine_tuning_comes_back_to_all(tree: TargetTree, card: ModelCard, qtbot: QtBot) -> None:
    modules = with_norms(card)
    tree.set_modules(modules)
    assert tree.presets["all"].isHidden()
    tree.set_adapter(FullConfig())
    assert len(tree.ticked()) == len(modules) and tree.presets["all"].isChecked() and not tree.presets["all"].isHidden()
    assert kind(tree, "norm").text(1) == "64"
    with qtbot.waitSignal(tree.chosen) as caught:
        kind(tree, "v_proj").setCheckState(0, Unchecked)
    names = caught.args[0]["adapter.target_modules"]
    assert {"embed_tokens", "input_layernorm", "norm"} <= set(names) and "v_proj" not in names
    assert selected(modules, FullConfig(target_modules=names)) == {
        module.name for module in modules if module.kind != "v_proj"}
    with qtbot.waitSignal(tree.chosen) as caught:
        kind(tree, "v_proj").setCheckState(0, Checked)
    assert caught.args == [{"adapter.target_modules": "all"}]
    tree.set_adapter(FullConfig(target_modules=("q_proj",)))
    with qtbot.waitSignal(tree.chosen) as caught:
        qtbot.mouseClick(tree.presets["all"], Qt.MouseButton.LeftButton)
    assert caught.args == [{"adapter.target_modules": "all"}]


def test_the_line_says_what_is_ticked_and_what_is_typed_is_passed_on(tree: TargetTree, qtbot: QtBot) -> None:
    assert tree.line.text() == "all-linear" and tree.line.accessibleName() == "Target layers by name or pattern"
    with qtbot.waitSignal(tree.chosen):
        kind(tree, "q_proj").setCheckState(0, Unchecked)
    assert tree.line.text() == "k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    tree.line.selectAll()
    said: list[dict[str, object]] = []
    tree.chosen.connect(said.append)
    qtbot.keyClicks(tree.line, "q_proj, ")
    assert said[-1] == {"adapter.target_modules": ("q_proj",)}
    tree.set_adapter(LoraConfig(target_modules=("q_proj",)))
    assert tree.line.text() == "q_proj, " and len(tree.ticked()) == 3  # what is typed stays as it is
    tree.set_adapter(LoraConfig(target_modules=r".*\.0\.mlp\..*"))
    assert tree.line.text() == r".*\.0\.mlp\..*" and len(tree.ticked()) == 3
    tree.line.clear()
    with qtbot.waitSignal(tree.chosen) as caught:
        qtbot.keyClicks(tree.line, " ")
    assert caught.args == [{"adapter.target_modules": ()}]


@pytest.mark.parametrize(("text", "meant"), [
    ("q-v", "q-v"), ("all", ("all",)), ("q_proj", ("q_proj",)), (" q_proj,, mlp.up_proj,", ("q_proj", "mlp.up_proj")),
    ("q_proj, q_proj", ("q_proj",)), (r".*\.\d{1,2}\.mlp", r".*\.\d{1,2}\.mlp"), ("q_proj|v_proj", "q_proj|v_proj"),
    (" , ", ())])
def test_what_text_means(text: str, meant: str | tuple[str, ...]) -> None:
    assert parse_targets(text, LoraConfig()) == meant
    assert parse_targets(targets_text(meant), LoraConfig()) == meant
    assert parse_targets("all", FullConfig()) == "all"


def test_places_that_end_alike_stay_apart() -> None:
    modules = [ModuleInfo(f"{part}.layers.{layer}.attn.proj", "proj", layer, "Linear", 8, 8, 64)
               for part in ("vision.encoder", "text.encoder") for layer in range(2)]
    groups = group_modules(modules)
    assert sum(len(members) for members in groups.values()) == 4 and len(groups) == 2


def test_a_name_that_the_layer_range_hides_is_kept(card: ModelCard) -> None:
    adapter = LoraConfig(target_modules=("q_proj", "lm_head"), first_layer=1)
    ticked = selected(card.modules, adapter)
    assert len(ticked) == 2
    more = ticked | {"model.layers.1.self_attn.v_proj", "model.layers.2.self_attn.v_proj"}
    assert as_config(card.modules, more, adapter) == {"adapter.target_modules": ("q_proj", "v_proj", "lm_head")}
