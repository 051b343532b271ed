"""Products in blocks of columns are those of torch, and so are the wide frozen layers that use them."""

import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.lora import columns
from core.lora.columns import COLUMNS, in_blocks, product
from core.training.frozen_linear import quicken_linears

_ROWS = 130


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("width", [1, COLUMNS, 2 * COLUMNS, 2 * COLUMNS + 7])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_in_blocks_is_the_product(width: int, biased: bool, transposed: bool) -> None:
    x = randn(_ROWS, 40)
    weight = randn(width, 40, seed=1).T if transposed else randn(40, width, seed=1)
    bias = randn(width, seed=2) if biased else None
    expected = x @ weight + (bias if bias is not None else 0.0)
    torch.testing.assert_close(product(x, weight, bias), expected, rtol=1e-5, atol=1e-5)
    out = torch.full((_ROWS, width), torch.nan)
    assert product(x, weight, bias, out=out) is out
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_only_many_rows_on_the_cpu_in_fp32_are_computed_in_blocks() -> None:
    assert in_blocks(randn(_ROWS, 4), 2 * COLUMNS)
    assert in_blocks(randn(2, _ROWS, 4), 2 * COLUMNS)
    assert not in_blocks(randn(1, 4), 2 * COLUMNS)
    assert not in_blocks(randn(_ROWS, 4), 2 * COLUMNS - 1)
    assert not in_blocks(randn(_ROWS, 4).bfloat16(), 2 * COLUMNS)
    assert not in_blocks(torch.empty(_ROWS, 4, device="meta"), 2 * COLUMNS)


@pytest.mark.parametrize("shape", [(48, 2 * COLUMNS), (2 * COLUMNS, 48)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_wide_frozen_layer_gives_the_same(shape: tuple[int, int], biased: bool) -> None:
    layer = nn.Linear(*shape, bias=biased).requires_grad_(False)
    x = randn(2, _ROWS, shape[0]).requires_grad_()
    away = randn(2, _ROWS, shape[1], seed=1)
    expected = F.linear(x, layer.weight, layer.bias)
    (expected_grad,) = torch.autograd.grad(expected, x, away)
    assert quicken_linears(nn.Sequential(layer)) == 1
    found = layer(x)
    assert found.grad_fn is not None
    assert "FrozenLinear" in found.grad_fn.name()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(found, x, away)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer(x[:1, :3]), F.linear(x[:1, :3], layer.weight, layer.bias))  # few rows: as ever


def test_a_layer_that_is_trained_later_gets_its_gradient_and_one_that_is_gone_is_freed() -> None:
    layer = nn.Linear(48, 2 * COLUMNS).requires_grad_(False)
    quicken_linears(nn.Sequential(layer))
    layer.requires_grad_(True)
    layer(randn(_ROWS, 48)).sum().backward()
    assert layer.weight.grad is not None
    gone = weakref.ref(layer)
    del layer
    assert gone() is None


def test_what_learns_or_is_narrow_or_in_16_bits_is_left_alone() -> None:
    layers = nn.ModuleList([nn.Linear(48, 2 * COLUMNS), nn.Linear(48, COLUMNS).requires_grad_(False),
                            nn.Linear(48, 2 * COLUMNS).bfloat16().requires_grad_(False)])
    layers[0].weight.requires_grad_(False)  # its bias learns
    assert quicken_linears(layers) == 0
    assert all("forward" not in vars(layer) for layer in layers)


def test_the_lora_product_is_the_same_in_blocks_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.lora.fused import fused_lora_linear
    from core.lora.fused_dora import fused_dora_linear

    x = randn(_ROWS, 2 * COLUMNS).requires_grad_()
    weight, lora_a, lora_b = randn(2 * COLUMNS + 9, 2 * COLUMNS, seed=1), randn(4, 2 * COLUMNS, seed=2), \
        randn(2 * COLUMNS + 9, 4, seed=3)
    ones = torch.ones(len(weight))
    found = []
    for width in (COLUMNS, 10**9):
        monkeypatch.setattr(columns, "COLUMNS", width)
        for y in (fused_lora_linear(x, weight, ones, lora_a, lora_b, 0.5),
                  fused_dora_linear(x, weight, ones, lora_a, lora_b, ones, 2 * ones, 0.5)):
            found.append((y, *torch.autograd.grad(y.square().mean(), x)))
    for blocks, whole in zip(found[:2], found[2:], strict=True):
        for ours, expected in zip(blocks, whole, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
