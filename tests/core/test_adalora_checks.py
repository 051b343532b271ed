"""AdaLoRA in the form: what keeps it from starting, what is unwise, what the counts mean."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from core.adapter_shapes import adapter_shapes, trained_parameters
from core.config import AdaLoraConfig, RunConfig, parse_config
from core.estimate import estimate
from core.events import DataScanned
from core.records import ModelCard, ModuleInfo
from core.run_problems import advice, problems


def _card(size: int = 64) -> ModelCard:
    modules = tuple(ModuleInfo(f"model.layers.{layer}.self_attn.q_proj", "q_proj", layer, "Linear", size, size, size**2)
                    for layer in range(4))
    return ModelCard(Path("m"), "m", "llama", "L", 1_000_000, 4, size, 128, 4, 2, 1000, 1024, "bf16", 1, True, True,
                     "", "", modules)


def _scan(rows: int = 1000) -> DataScanned:
    return DataScanned((), "chat", rows, 50 * rows, 20 * rows, 0, 0, 90, ())


def _config(**adapter: Any) -> RunConfig:
    return parse_config({"model": {"path": "m"}, "data": {"train": [__file__], "validation_fraction": 0.0},
                         "adapter": {"method": "adalora", **adapter}, "training": {"epochs": 1, "batch_size": 10}})


@pytest.mark.parametrize(("adapter", "rows", "field"), [
    ({}, 1000, None), ({"rank": 8, "initial_rank": 8}, 1000, None), ({"rank": 42}, 1000, None),
    ({"rank": 8, "initial_rank": 7}, 1000, "adapter.initial_rank"),
    ({"budget_start": 0.6, "budget_end": 0.5}, 1000, "adapter.budget_end"),
    ({"budget_start": 0.5, "budget_end": 0.5}, 1000, "adapter.budget_end"),
    ({"budget_start": 0.5, "budget_end": 0.52}, 100, "adapter.budget_end"), ({}, 10, "adapter.budget_end"),
    ({"rank": 43}, 1000, "adapter.rank"), ({"rank": 8, "initial_rank": 65}, 1000, "adapter.initial_rank"),
])
def test_problems_have_their_field(adapter: dict[str, Any], rows: int, field: str | None) -> None:
    found = problems(_config(**adapter), _card(), _scan(rows))
    assert [problem.field for problem in found] == ([field] if field else [])
    assert all(problem.message.endswith(".") and problem.hint.endswith(".") for problem in found)


@pytest.mark.parametrize(("adapter", "field"), [
    ({}, None), ({"rank": 8, "initial_rank": 8}, "adapter.initial_rank"),
    ({"budget_every": 1000}, "adapter.budget_every"), ({"budget_every": 60}, None),
])
def test_advice(adapter: dict[str, Any], field: str | None) -> None:
    found = [item.field for item in advice(_config(**adapter), _card(), _scan()) if item.field.startswith("adapter.")]
    assert found == ([field] if field else [])


def test_the_first_rank_is_one_and_a_half_times_the_target() -> None:
    assert [AdaLoraConfig(rank=rank).first_rank for rank in (1, 2, 7, 8)] == [2, 3, 11, 12]


def test_counts_are_those_of_the_start_and_say_so() -> None:
    found = estimate(_config(rank=8), _card())
    assert found.trainable_parameters == 4 * 12 * (64 + 64 + 1)
    assert any("initial rank 12" in words and "8 ranks a layer" in words for words in found.assumptions)
    plain = estimate(_config(rank=8, initial_rank=8), _card())
    assert plain.adapter_bytes < found.adapter_bytes and not any("initial" in words for words in plain.assumptions)


def test_shapes_are_those_of_the_file(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    from core.lora.adalora import AdaLora
    from core.lora.inject import module_table
    from core.lora.method import Material
    from core.models.load import load_model
    from core.targets import select_targets

    model, adapter = load_model(tiny_model, torch.device("cpu"), torch.float32), AdaLoraConfig(rank=2)
    targets = select_targets(module_table(model), adapter)
    method = AdaLora(adapter)
    method.install(model, Material((), 0))
    list(method.begin(model, 0, 10))
    method.write(tmp_path, model, torch.float32, "base", {})
    file = load_file(tmp_path / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in file.items()} == adapter_shapes(targets, adapter)
    trained = sum(parameter.numel() for group in method.groups(model) for parameter in group.parameters.values())
    assert trained == trained_parameters(targets, adapter)
