"""Wide frozen layers without an adapter, computed in blocks of columns on the CPU; see `core.lora.columns`.

The result and the gradient are those of `nn.Linear`, up to the order of additions.
"""

import weakref
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.lora.columns import COLUMNS, in_blocks, product


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        y = x.new_empty(*x.shape[:-1], weight.shape[0])  # no view: Falcon adds to it in place
        product(x.reshape(-1, x.shape[-1]), weight.T, bias, out=y.view(-1, y.shape[-1]))
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        grad = grad_outputs[0]
        return product(grad.reshape(-1, grad.shape[-1]), weight).view(*grad.shape[:-1], weight.shape[1]), None, None


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, differentiable in x only.

    Args:
        x: (..., in), in fp32.
        weight: (out, in), frozen.
        bias: (out,) or None, frozen.
    """
    result = _FrozenLinear.apply(x, weight, bias)
    assert isinstance(result, Tensor)
    return result


def quicken_linears(model: nn.Module) -> int:
    """Let the wide frozen layers of a model on the CPU compute in blocks from now on; returns how many there are.

    The output layer is left as it is: the losses and `core.training.head` have ways of their own.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    wide: list[Any] = [module for module in model.modules()
                       if type(module) is nn.Linear and module is not head and _is_suited(module)]
    for module in wide:
        # a proxy: else the layer would hold itself, and its weights stay in memory until garbage is collected
        itself: Any = weakref.proxy(module)
        module.forward = partial(_forward, itself)
    return len(wide)


def _is_suited(layer: nn.Linear) -> bool:
    frozen = not layer.weight.requires_grad and (layer.bias is None or not layer.bias.requires_grad)
    return (frozen and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32
            and max(layer.weight.shape) >= 2 * COLUMNS)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    # asked again, should someone train it later
    if in_blocks(x, max(layer.weight.shape)) and _is_suited(layer):  # wide one way or the other
        return frozen_linear(x, layer.weight, layer.bias)
    return F.linear(x, layer.weight, layer.bias)
