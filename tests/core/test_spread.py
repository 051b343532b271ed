"""Which runs spread their base over several GPUs, and what one GPU then holds."""

from typing import Any

import pytest
from fake_engine import make_card

from core.base_memory import weight_bytes
from core.config import RunConfig, parse_config
from core.estimate import estimate, on_device, spread_here, with_checkpointing
from core.spread import share_bytes, spread_over

GIGABYTE = 10**9
TWO_GPUS = {"cuda:0": 80 * GIGABYTE, "cuda:1": 80 * GIGABYTE, "cpu": 200 * GIGABYTE}


def config(parallel: str = "auto", device: str = "all", **adapter: Any) -> RunConfig:
    return parse_config({"model": {"path": "m"}, "adapter": adapter,
                         "training": {"parallel": parallel, "device": device}})


@pytest.mark.parametrize(("parallel", "base", "gpus", "adapter", "expected"), [
    ("auto", 140, (80, 80), {}, 2), ("auto", 50, (80, 80), {}, 1), ("auto", 60, (80, 80), {}, 2),
    ("auto", 30, (80, 40), {}, 2), ("shard", 1, (80, 80, 80), {}, 3), ("replicate", 140, (80, 80), {}, 1),
    ("shard", 140, (80,), {}, 1), ("shard", 140, (), {}, 1), ("auto", 140, (80, 80), {"method": "qlora"}, 1),
    ("auto", 140, (80, 80), {"method": "full"}, 1)])
def test_a_base_that_does_not_fit_one_gpu_is_spread(parallel: str, base: int, gpus: tuple[int, ...],
                                                    adapter: dict[str, Any], expected: int) -> None:
    memories = [memory * GIGABYTE for memory in gpus]
    assert spread_over(config(parallel, **adapter), base * GIGABYTE, memories) == expected


def test_each_gpu_holds_its_part_of_the_layers_and_those_at_work() -> None:
    layers = sum(module.parameters for module in make_card().modules if module.layer >= 0)
    card = make_card(parameters=layers + 1_000, layers=16)
    assert share_bytes(card, "bf16", 8) == 2 * 1_000 + 2 * layers // 8 + 2 * 2 * layers // 16
    assert share_bytes(card, "bf16", 1) == weight_bytes(card, config().adapter, "bf16")
    few = make_card(parameters=layers, layers=2)
    assert share_bytes(few, "bf16", 2) == 2 * layers  # both layers are at work: no more than all of them


def test_the_estimate_is_that_of_one_gpu() -> None:
    card = make_card(parameters=70 * GIGABYTE, layers=80)
    assert spread_here(config(), card, TWO_GPUS) == 2
    assert spread_here(config(device="auto"), card, TWO_GPUS) == 1
    assert spread_here(config(), make_card(), TWO_GPUS) == 1
    here = on_device(config(), list(TWO_GPUS))
    whole, spread = estimate(here, card), estimate(here, card, gpus=2)
    assert spread.memory["weights"] == share_bytes(card, "bf16", 2) < whole.memory["weights"]
    assert {**spread.memory, "weights": 0} == {**whole.memory, "weights": 0}
    assert "The weights of the layers are spread over 2 GPUs." in spread.assumptions
    assert not any("spread" in words for words in whole.assumptions)


def test_layers_are_computed_twice_only_where_a_part_of_the_base_leaves_too_little() -> None:
    layers = sum(module.parameters for module in make_card().modules if module.layer >= 0)
    card = make_card(parameters=layers, layers=64)
    here = on_device(config(), list(TWO_GPUS))
    needs = [estimate(here, card, gpus=gpus).memory_bytes for gpus in (1, 4)]
    between = int(sum(needs) / 2 / 0.9)
    chosen = [with_checkpointing(here, card, between, gpus=gpus).training.activation_checkpointing for gpus in (1, 4)]
    assert chosen == ["on", "off"]
