"""The LoRA layer: its formula, its gradients, its start."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from core.lora.layers import LoraLayer, linear_shape


def _base(kind: str) -> nn.Module:
    torch.manual_seed(1)
    if kind == "conv1d":
        layer = Conv1D(7, 5)
        nn.init.normal_(layer.bias)
    else:
        layer = nn.Linear(5, 7, bias=kind == "linear with bias")
    return layer.requires_grad_(False)


def _trained(kind: str, dropout: float = 0.0) -> LoraLayer:
    layer = LoraLayer(_base(kind), rank=3, alpha=6.0, dropout=dropout, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(layer.lora_b)
    return layer


KINDS = ["linear", "linear with bias", "conv1d"]


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_the_formula_of_the_paper(kind: str) -> None:
    layer, x = _trained(kind), torch.randn(2, 4, 5)
    expected = layer.base(x) + 2.0 * (x @ layer.lora_a.T @ layer.lora_b.T)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_fused_product_has_the_gradients_of_the_plain_one(kind: str) -> None:
    layer = _trained(kind)
    gradients = []
    for compute in (layer, lambda x: layer._plain_forward(x, dropping=False)):
        layer.zero_grad()
        x = torch.linspace(-1, 1, 40).reshape(2, 4, 5).requires_grad_()
        compute(x).square().sum().backward()
        gradients.append((x.grad, layer.lora_a.grad, layer.lora_b.grad))
    for fused, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_over_a_base_in_16_bits_nothing_changes_by_a_bit(kind: str, dtype: torch.dtype) -> None:
    layer = _trained(kind)
    layer.base.to(dtype)
    found = []
    for compute in (layer, lambda x: layer._plain_forward(x, dropping=False)):
        layer.zero_grad()
        x = torch.linspace(-1, 1, 40).reshape(2, 4, 5).to(dtype).requires_grad_()
        y = compute(x)
        y.float().square().sum().backward()
        found.append((y, x.grad, layer.lora_a.grad, layer.lora_b.grad))
    for ours, plain in zip(*found, strict=True):
        assert torch.equal(ours, plain)


def test_update_is_zero_at_the_start_and_only_a_and_b_are_trained() -> None:
    layer, x = LoraLayer(_base("linear"), rank=2, alpha=4.0), torch.randn(3, 5)
    assert torch.equal(layer(x), layer.base(x))
    assert {name for name, item in layer.named_parameters() if item.requires_grad} == {"lora_a", "lora_b"}
    assert layer.lora_a.abs().max() > 0


def test_delta_is_out_by_in_whatever_the_orientation_of_the_base() -> None:
    for kind in KINDS:
        layer, x = _trained(kind), torch.randn(3, 5)
        assert layer.delta().shape == (7, 5)
        torch.testing.assert_close(layer(x) - layer.base(x), x @ layer.delta().T, rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    layer, x = _trained("linear", dropout=0.5), torch.ones(4, 5)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_sixteen_bit_base_keeps_its_dtype_and_the_adapter_stays_fp32() -> None:
    layer = _trained("linear with bias")
    layer.base.to(torch.bfloat16)
    result = layer(torch.randn(3, 5, dtype=torch.bfloat16))
    assert result.dtype == torch.bfloat16
    assert layer.lora_a.dtype == torch.float32


def test_other_layers_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="LayerNorm"):
        linear_shape(nn.LayerNorm(3))
