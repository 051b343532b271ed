"""Which modules get an adapter, in every family of models."""

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, build_tiny

from core.config import LoraConfig
from core.errors import AdapterError
from core.lora.inject import adapter_disabled, inject, lora_layers, module_table, remove
from core.models.load import load_model

IDS = torch.arange(20, 40)[None]


def _load(folder: Path):
    return load_model(folder, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_presets_find_their_layers_in_every_family(family: str, tmp_path: Path) -> None:
    folder = build_tiny(family, tmp_path / family)
    counts = {}
    for preset in ("q-v", "attention", "all-linear"):
        model = _load(folder)
        layers = inject(model, LoraConfig(rank=2, target_modules=preset), seed=0)
        assert not any("head" in name or "embed_out" in name for name in layers)
        trained = {name for name, item in model.named_parameters() if item.requires_grad}
        assert trained == {f"{name}.{side}" for name in layers for side in ("lora_a", "lora_b")}
        counts[preset] = len(layers)
    assert 0 < counts["q-v"] < counts["attention"] < counts["all-linear"]


def test_disabled_and_removed_adapter_leave_the_base_bit_for_bit(tiny_model: Path) -> None:
    model = _load(tiny_model)
    before = model(IDS).logits
    for layer in inject(model, LoraConfig(rank=2), seed=0).values():
        torch.nn.init.normal_(layer.lora_b)
    assert not torch.equal(model(IDS).logits, before)
    with adapter_disabled(model):
        assert torch.equal(model(IDS).logits, before)
    remove(model)
    assert not lora_layers(model)
    assert torch.equal(model(IDS).logits, before)


def test_same_seed_draws_the_same_a(tiny_model: Path) -> None:
    first, second, other = (list(inject(_load(tiny_model), LoraConfig(), seed).values())[5].lora_a
                            for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_layer_range_list_and_regular_expression(tiny_model: Path) -> None:
    model = _load(tiny_model)
    names = inject(model, LoraConfig(target_modules=("q_proj",), first_layer=1, last_layer=1), seed=0)
    assert list(names) == ["model.layers.1.self_attn.q_proj"]
    names = inject(_load(tiny_model), LoraConfig(target_modules=r".*\.(0|2)\..*up_proj"), seed=0)
    assert list(names) == ["model.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj"]


def test_module_table_is_the_same_with_and_without_the_adapter(tiny_model: Path) -> None:
    model = _load(tiny_model)
    before = module_table(model)
    inject(model, LoraConfig(rank=2), seed=0)
    assert module_table(model) == before


def test_one_kind_given_as_a_text_is_explained(tiny_model: Path) -> None:
    with pytest.raises(AdapterError, match="match no module") as caught:
        inject(_load(tiny_model), LoraConfig(target_modules="q_proj"), seed=0)
    assert '["q_proj"]' in caught.value.hint


@pytest.mark.parametrize(("adapter", "words"), [
    (LoraConfig(target_modules=("wrong_proj",)), "'wrong_proj' matches no module"),
    (LoraConfig(target_modules="nothing.*"), "match no module"),
    (LoraConfig(first_layer=9), "match no module"),
    (LoraConfig(rank=1000), "above the size of"),
])
def test_what_can_not_be_adapted_is_refused(tiny_model: Path, adapter: LoraConfig, words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        inject(_load(tiny_model), adapter, seed=0)
