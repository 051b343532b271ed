"""DoRA against peft: function, gradients, ten steps, dropout, files both ways; and the norm that is kept."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, build_tiny, some_quick
from transformers.pytorch_utils import Conv1D

sys.path.insert(0, str(Path(__file__).resolve().parent))

from oracle import IDS, TARGETS, USUAL_TARGETS, adam, gradient_differences, make_pair, read_by_peft, train_both

from core.config import DoraConfig
from core.lora.adapter_file import save_adapter
from core.lora.attach import load_adapter
from core.lora.dora import DoraLayer
from core.models.load import load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")
    return lambda family: root / family if (root / family).exists() else build_tiny(family, root / family)


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_trains_as_peft_does_and_files_go_both_ways(family: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = DoraConfig(rank=4, alpha=6.0, target_modules=tuple(TARGETS.get(family, USUAL_TARGETS)))
    pair = make_pair(bases(family), family, adapter, {"init_lora_weights": True}, random_b=True)
    assert pair.logit_difference() <= 1e-5
    for model in (pair.ours, pair.reference):
        model.double()  # where the order of sums leaves no trace
    assert max(gradient_differences(pair).values()) <= 1e-6
    for model in (pair.ours, pair.reference):
        model.float()
    train_both(pair, 10, *adam(pair, 1e-3), rate=1e-3)
    assert max(pair.differences().values()) <= 1e-5
    save_adapter(tmp_path / "ours", pair.ours, adapter, "base")
    pair.reference.save_pretrained(tmp_path / "theirs")
    loaded = load_model(bases(family), CPU, torch.float32)
    load_adapter(tmp_path / "theirs", loaded)
    with torch.no_grad():
        logits = pair.reference(IDS).logits
        torch.testing.assert_close(loaded(IDS).logits, logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(read_by_peft(bases(family), tmp_path / "ours")(IDS).logits, logits, rtol=0,
                                   atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dropout_is_that_of_peft(family: str, bases: Callable[[str], Path]) -> None:
    adapter = DoraConfig(rank=4, alpha=6.0, dropout=0.3, rslora=True)
    pair = make_pair(bases(family), family, adapter, {"init_lora_weights": True}, random_b=True)
    train_both(pair, 10, *adam(pair, 1e-3), rate=1e-3)
    assert max(pair.differences().values()) <= 1e-5


@pytest.mark.parametrize("base", [torch.nn.Linear(12, 7), torch.nn.Linear(12, 7, bias=False), Conv1D(7, 12)])
def test_the_fused_product_is_the_plain_one_with_a_constant_norm(base: torch.nn.Module) -> None:
    torch.manual_seed(0)
    layer = DoraLayer(base.double(), 3, 6.0).double()
    torch.nn.init.normal_(layer.lora_b)
    with torch.no_grad():
        layer.magnitude.mul_(1 + 0.2 * torch.rand(7))
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    rows = layer.weight.T if isinstance(base, Conv1D) else layer.weight
    changed = rows + layer.scale * layer.lora_b @ layer.lora_a
    straight = x @ changed.T
    plain = layer.magnitude / changed.norm(dim=1).detach() * straight + (0 if layer.bias is None else layer.bias)
    wanted = (x, layer.lora_a, layer.lora_b, layer.magnitude)
    fused = layer(x)
    torch.testing.assert_close(fused, plain)
    weight = torch.randn_like(plain)
    for ours, theirs in zip(torch.autograd.grad((fused * weight).sum(), wanted),
                            torch.autograd.grad((plain * weight).sum(), wanted), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) <= 1e-6


def test_the_norm_is_computed_once_until_a_step_changes_it() -> None:
    layer = DoraLayer(torch.nn.Linear(12, 7), 3, 6.0)
    optimizer = torch.optim.SGD([layer.lora_a, layer.lora_b, layer.magnitude], lr=0.1)
    first = layer.norm()
    with torch.inference_mode():
        assert layer.norm() is first
    torch.nn.init.normal_(layer.lora_b)
    with torch.inference_mode():
        second = layer.norm()
    assert second is not first and not second.is_inference()
    layer(torch.randn(4, 12)).square().sum().backward()
    optimizer.step()
    expected = (layer.weight + layer.delta()).norm(dim=1)
    torch.testing.assert_close(layer.norm(), expected)
    layer.scale = 0.5
    torch.testing.assert_close(layer.norm(), (layer.weight + layer.delta()).norm(dim=1))


def test_a_sixteen_bit_base_keeps_its_type() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 32, dtype=torch.bfloat16)
    layer = DoraLayer(linear, 4, 8.0)
    x = torch.randn(5, 48, dtype=torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x), linear(x), rtol=2e-2, atol=2e-2)
    layer.train()
    layer.dropout = 0.5
    torch.testing.assert_close(layer(x), linear(x), rtol=2e-2, atol=2e-2)  # B is 0 and the shares are 1
