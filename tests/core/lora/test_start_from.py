"""A run that goes on from an adapter begins with exactly its numbers; one of another form is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from core.config import DataConfig, DoraConfig, LoraConfig, ModelConfig, RunConfig, TrainingConfig, parse_config
from core.control import Control
from core.errors import AdapterError
from core.events import CheckpointSaved
from core.jobs import Train
from core.lora.adaptation import Adaptation
from core.lora.adapter_file import read_adapter, save_adapter
from core.lora.dora import DoraLayer
from core.lora.inject import inject, lora_layers
from core.lora.layers import LoraLayer
from core.lora.method import Material
from core.lora.start import start_from
from core.models.load import load_model
from core.training.loop import train


def make(base: Path, folder: Path, adapter: LoraConfig | DoraConfig, origin: dict[str, str] | None = None) -> Path:
    model = load_model(base, torch.device("cpu"), torch.float32)
    inject(model, adapter, 7, DoraLayer if isinstance(adapter, DoraConfig) else LoraLayer)
    generator = torch.Generator().manual_seed(7)
    for layer in lora_layers(model).values():
        layer.lora_b.data.normal_(0, 0.1, generator=generator)
    save_adapter(folder, model, adapter, str(base), origin)
    return folder


def test_a_run_begins_with_the_numbers_of_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    start = make(tiny_model, tmp_path / "start", LoraConfig(rank=4, target_modules="attention"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"instruction": f"say {n}", "output": f"it is {n}"}) for n in range(6)))
    config = RunConfig(
        model=ModelConfig(path=str(tiny_model)), data=DataConfig(train=(str(rows),), validation_fraction=0.0),
        adapter=LoraConfig(rank=4, target_modules="attention", start_from=str(start)),
        training=TrainingConfig(max_steps=1, batch_size=2, learning_rate=1e-12, warmup_steps=0, device="cpu",
                                dtype="fp32"))
    events = list(train(Train(config, tmp_path / "run"), Control()))
    assert any(isinstance(event, CheckpointSaved) for event in events)
    before, after = read_adapter(start).pairs, read_adapter(tmp_path / "run" / "adapter").pairs
    assert set(before) == set(after)
    for name, pair in after.items():
        assert torch.allclose(pair.lora_a, before[name].lora_a, atol=1e-9)
        assert torch.allclose(pair.lora_b, before[name].lora_b, atol=1e-9)


def fresh(base: Path, adapter: LoraConfig | DoraConfig) -> PreTrainedModel:
    model = load_model(base, torch.device("cpu"), torch.float32)
    inject(model, adapter, 1, DoraLayer if isinstance(adapter, DoraConfig) else LoraLayer)
    return model


def test_dora_takes_its_lengths_along(tiny_model: Path, tmp_path: Path) -> None:
    start = make(tiny_model, tmp_path / "start", DoraConfig(rank=4))
    adapter = DoraConfig(rank=4, start_from=str(start))
    model = fresh(tiny_model, adapter)
    file = start_from(model, RunConfig(adapter=adapter), "")
    for name, layer in lora_layers(model).items():
        assert isinstance(layer, DoraLayer)
        assert torch.equal(layer.magnitude, file.pairs[name].magnitude)  # type: ignore[arg-type]
        assert torch.equal(layer.lora_b, file.pairs[name].lora_b)


@pytest.mark.parametrize(("fields", "words"), [
    ({"target_modules": ("q_proj",)}, "does not change"), ({"target_modules": "all-linear"}, "does not change"),
    ({"rank_pattern": {"q_proj": 2}}, r"q_proj has rank 4"), ({"alpha_pattern": {"q_proj": 1.0}}, r"q_proj is scaled")])
def test_another_form_is_refused_by_name_and_nothing_is_copied(tiny_model: Path, tmp_path: Path,
                                                               fields: dict[str, object], words: str) -> None:
    start = make(tiny_model, tmp_path / "start", LoraConfig(rank=4, target_modules="attention"))
    adapter = LoraConfig(**{"rank": 4, "target_modules": "attention", "start_from": str(start), **fields})  # type: ignore[arg-type]
    model = fresh(tiny_model, adapter)
    with pytest.raises(AdapterError, match=words):
        start_from(model, RunConfig(adapter=adapter), "")
    assert all(not layer.lora_b.any() for layer in lora_layers(model).values())


def test_another_base_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    start = make(tiny_model, tmp_path / "start", LoraConfig(rank=4), {"base_fingerprint": "one"})
    adapter = LoraConfig(rank=4, start_from=str(start))
    with pytest.raises(AdapterError, match="another base model"):
        start_from(fresh(tiny_model, adapter), RunConfig(adapter=adapter), "two")


def installed(base: Path, config: RunConfig) -> PreTrainedModel:
    model = load_model(base, torch.device("cpu"), torch.float32)
    Adaptation(config).install(model, Material([SimpleNamespace(input_ids=[5, 6, 7])], seed=1))
    return model


@pytest.mark.parametrize(("before", "after", "words"), [
    ({"adapter": {"modules_to_save": ["layers.0.mlp.up_proj"]}}, {"adapter": {"modules_to_save": ["lm_head"]}},
     r"The adapter to start from does not train lm_head\.weight"),
    ({"bottleneck": {"size": 8, "last_layer": 1}}, {"bottleneck": {"size": 8}},
     r"has no bottleneck adapter behind .*layers\.2"),
    ({"prefix": {"length": 3}}, {"prefix": {"length": 3}}, r"prefix .* for a model of another shape"),
    ({"adapter": {"method": "adalora"}}, {"adapter": {"method": "adalora", "target_modules": "q-v"}},
     "The run does not change")])
def test_what_only_the_tensors_tell_is_refused_and_nothing_is_copied(
        tiny_model: Path, tmp_path: Path, before: dict[str, Any], after: dict[str, Any], words: str) -> None:
    common = {"rank": 2, "target_modules": "attention"}
    first = parse_config(before | {"adapter": common | before.get("adapter", {})})
    model = installed(tiny_model, first)
    start = tmp_path / "start"
    start.mkdir()
    Adaptation(first).write(start, model, torch.float32, "", {})
    for name, change in (("bottleneck/bottleneck_config.json", {"last_layer": None}),
                         ("prefix/adapter_config.json", {"num_attention_heads": 1})):
        if (start / name).exists():
            (start / name).write_text(json.dumps(json.loads((start / name).read_text()) | change))
    second = parse_config(after | {"adapter": common | after.get("adapter", {}) | {"start_from": str(start)}})
    model = installed(tiny_model, second)
    values = {name: value.clone() for name, value in Adaptation(second).parameters(model).items()}
    with pytest.raises(AdapterError, match=words):
        start_from(model, second, "")
    for name, value in Adaptation(second).parameters(model).items():
        assert torch.equal(value, values[name])
