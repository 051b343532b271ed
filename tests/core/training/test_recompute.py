"""Layers that are computed twice: the same to the bit, chosen where a run would not fit otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FAMILIES, build_tiny, some_quick

from core.config import RunConfig, parse_config
from core.control import Control
from core.errors import ConfigError
from core.estimate import estimate, on_device, with_checkpointing
from core.events import Note, StepDone
from core.jobs import Train
from core.models.inspect import read_card
from core.training import recompute, setup
from core.training.loop import train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": "Count", "output": "one " * number} for number in range(1, 13)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def config_of(model: Path, data: Path, **sections: Any) -> RunConfig:
    training = {"max_steps": 3, "batch_size": 4, "device": "cpu", "dtype": "fp32", **sections.pop("training", {})}
    return parse_config({"model": {"path": str(model)}, "data": {"train": [str(data)], "validation_fraction": 0.2},
                         "adapter": {"rank": 4, "dropout": 0.1}, "training": training, **sections})


def trained(config: RunConfig, folder: Path, checkpointing: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and adapter of a run."""
    training = config.training.model_copy(update={"activation_checkpointing": checkpointing})
    events = list(train(Train(config.model_copy(update={"training": training}), folder), Control()))
    told = any(isinstance(event, Note) and "second time" in event.message for event in events)
    assert told == (checkpointing == "on")
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    return losses, load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("family", some_quick(FAMILIES, ["llama", "gpt2"]))
@pytest.mark.parametrize("packing", ["on", "off"])
def test_losses_and_adapter_are_the_same_to_the_bit(family: str, packing: str, data: Path, tmp_path: Path) -> None:
    config = config_of(build_tiny(family, tmp_path / "base"), data, training={"packing": packing})
    plain, twice = (trained(config, tmp_path / choice, choice) for choice in ("off", "on"))
    assert plain[0] == twice[0]
    assert plain[1].keys() == twice[1].keys()
    assert all(torch.equal(tensor, twice[1][name]) for name, tensor in plain[1].items())


@pytest.mark.parametrize("sections", [
    {"prefix": {"length": 4}, "bottleneck": {"size": 8}},
    {"adapter": {"rank": 4, "first_layer": 2}, "training": {"frozen_cache": "on", "epochs": 2, "max_steps": 0}},
    {"adapter": {"method": "dora", "rank": 4}}, {"adapter": {"method": "full"}},
], ids=["prefix and bottleneck", "above a frozen cache", "DoRA", "full"])
def test_it_suits_every_method(sections: dict[str, Any], tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = config_of(tiny_model, data, **sections)
    found = []
    for choice in ("off", "on"):
        training = config.training.model_copy(update={"activation_checkpointing": choice})
        events = train(Train(config.model_copy(update={"training": training}), tmp_path / choice), Control())
        found.append([event.loss for event in events if isinstance(event, StepDone)])
    assert found[0] == found[1] and len(found[0]) > 1


def test_auto_takes_it_where_the_run_would_not_fit(tiny_model: Path, data: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    config = on_device(config_of(tiny_model, data), ["cpu"])
    card = read_card(tiny_model)
    needed = estimate(config, card).memory_bytes
    chosen = [with_checkpointing(config, card, memory).training.activation_checkpointing
              for memory in (2 * needed, needed // 2)]
    assert chosen == ["off", "on"]
    monkeypatch.setattr(setup, "free_memory", lambda device: 1)
    list(train(Train(config, tmp_path / "run"), Control()))
    assert 'activation_checkpointing = "on"' in (tmp_path / "run" / "run.toml").read_text()


def test_layers_that_are_not_known_are_refused_only_where_it_was_asked_for(
        tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "decoder_layers", lambda model: None)
    monkeypatch.setattr(setup, "free_memory", lambda device: 1)
    config = config_of(tiny_model, data)
    list(train(Train(config, tmp_path / "auto"), Control()))  # tried without
    assert 'activation_checkpointing = "off"' in (tmp_path / "auto" / "run.toml").read_text()
    training = config.training.model_copy(update={"activation_checkpointing": "on"})
    with pytest.raises(ConfigError, match="can not be computed a second time"):
        list(train(Train(config.model_copy(update={"training": training}), tmp_path / "on"), Control()))
