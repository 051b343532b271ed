"""The estimate counts the very tensors that autograd keeps, for each method and family."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, build_tiny, some_quick
from torch import Tensor

from bench.draining import finish
from core.config import NoAdapterConfig, RunConfig, parse_config
from core.control import Control
from core.estimate import lowest_layer
from core.kept_activations import Pass, kept_bytes
from core.lora.method import train_mode
from core.models.inspect import read_card
from core.targets import select_targets
from core.training.segments import segmented_attention
from core.training.setup import prepare

LENGTH, ROWS = 48, 3
ALL_LINEAR = {"target_modules": "all-linear"}


def config_for(model: Path, folder: Path, **sections: Any) -> RunConfig:
    data = folder / "rows.jsonl"
    # where rows are padded one is shorter, as else no mask would be needed
    lengths = [1 if sections.get("training", {}).get("packing") == "off" and not number else 40
               for number in range(ROWS)]
    data.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": f"{number}"}, {"role": "assistant", "content": "green houses " * length}]}) + "\n"
        for number, length in enumerate(lengths)), encoding="utf-8")
    training = {"batch_size": ROWS, "device": "cpu", "dtype": "fp32", **sections.pop("training", {})}
    return parse_config({"model": {"path": str(model)}, "training": training, "data": {
        "train": [str(data)], "max_length": LENGTH, "validation_fraction": 0.0}, **sections})


@contextlib.contextmanager
def storages(known: set[int]) -> Iterator[dict[int, int]]:
    """Bytes by place of every storage that autograd keeps within this, but those of `known`."""
    found: dict[int, int] = {}
    held = []  # so that no place is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def kept_and_counted(config: RunConfig) -> tuple[int, int]:
    """Bytes that the layers really keep, and what the estimate counts."""
    setup = finish(prepare(config, Control()))
    model = setup.model
    train_mode(model)
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    batch, = setup.batches(list(setup.train))
    packed = setup.config.training.packing == "on"
    with segmented_attention(model) if packed else contextlib.nullcontext(), storages(known) as found:
        setup.summed_loss(model, batch)
    head = model.get_output_embeddings().weight
    # the loss keeps the gradient of the states and of the head, and the labels
    loss = len(batch.labels) * (head.shape[1] * head.element_size() + 8)
    loss += head.numel() * head.element_size() if head.requires_grad else 0
    card = read_card(Path(config.model.path))
    targets = [] if isinstance(config.adapter, NoAdapterConfig) else select_targets(card.modules, config.adapter)
    once = Pass(batch.input_ids.numel(), batch.input_ids.numel() // ROWS, packed)
    return sum(found.values()) - loss, kept_bytes(config, card, targets, lowest_layer(config, targets),
                                                  setup.config.training.dtype, once)


@pytest.mark.parametrize("sections", [
    {"adapter": {"target_modules": "q-v"}},
    {"adapter": ALL_LINEAR},
    {"adapter": {**ALL_LINEAR, "rank": 32}},
    {"adapter": {"target_modules": "q-v", "first_layer": 2}},
    {"adapter": {"target_modules": "q-v", "dropout": 0.1}},
    {"adapter": ALL_LINEAR, "training": {"dtype": "bf16"}},
    {"adapter": {"method": "dora", **ALL_LINEAR}},
    {"adapter": {"method": "qlora", **ALL_LINEAR}},
    {"adapter": {"method": "full"}},
    {"adapter": {"method": "none"}, "bottleneck": {"size": 16}},
    {"adapter": {"method": "none"}, "prefix": {"length": 5}},
    {"adapter": ALL_LINEAR, "training": {"packing": "off"}},
], ids=json.dumps)
def test_each_method(tiny_model: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    kept, counted = kept_and_counted(config_for(tiny_model, tmp_path, **sections))
    assert counted == pytest.approx(kept, rel=0.08)


def test_layers_that_are_computed_twice_keep_what_enters_them(tiny_model: Path, tmp_path: Path) -> None:
    """After the forward pass; in the backward, one layer at a time comes to it."""
    found = {choice: kept_and_counted(config_for(tiny_model, tmp_path, adapter=ALL_LINEAR,
                                                 training={"activation_checkpointing": choice}))
             for choice in ("off", "on")}
    layers = read_card(tiny_model).layers
    assert found["on"][1] == pytest.approx(found["on"][0] + found["off"][0] / layers, rel=0.08)
    assert found["on"][0] < 0.3 * found["off"][0]


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_each_family(tmp_path: Path, family: str) -> None:
    model = build_tiny(family, tmp_path / family)
    kept, counted = kept_and_counted(config_for(model, tmp_path, adapter=ALL_LINEAR))
    assert counted == pytest.approx(kept, rel=0.12)
