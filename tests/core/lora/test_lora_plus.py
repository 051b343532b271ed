"""LoRA+ and rsLoRA against peft, step for step."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_tiny, some_quick

sys.path.insert(0, str(Path(__file__).resolve().parent))

from oracle import adam, make_pair, train_both

from core.config import DoraConfig, LoraConfig


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")
    return lambda family: root / family if (root / family).exists() else build_tiny(family, root / family)


@pytest.mark.parametrize("kind", [LoraConfig, DoraConfig])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("family", some_quick(["llama", "gpt2"], ["gpt2"]))
def test_the_groups_of_peft(family: str, decay: float, kind: type[LoraConfig | DoraConfig],
                            bases: Callable[[str], Path]) -> None:
    from peft.optimizers import create_loraplus_optimizer

    pair = make_pair(bases(family), family, kind(rank=4, alpha=6.0, lora_plus_ratio=16.0), {}, random_b=True)
    mine, _ = adam(pair, 1e-4, decay)
    theirs: Any = create_loraplus_optimizer(pair.reference, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16.0,
                                            loraplus_weight_decay=decay)
    train_both(pair, 10, mine, theirs, rate=1e-4)
    assert max(pair.differences().values()) <= 1e-5
    rates = {group["rate"]: len(group["params"]) for group in mine.param_groups}
    assert rates.keys() == {1.0, 16.0}


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox"])
def test_rslora_trains_as_in_peft(family: str, bases: Callable[[str], Path]) -> None:
    pair = make_pair(bases(family), family, LoraConfig(rank=9, alpha=6.0, rslora=True), {}, random_b=True)
    assert all(layer.scale == 2.0 for layer in pair.layers.values())
    assert pair.logit_difference() <= 1e-5
    train_both(pair, 10, *adam(pair, 1e-3), rate=1e-3)
    assert max(pair.differences().values()) <= 1e-5
