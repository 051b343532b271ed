"""The LoRA product as autograd functions that keep little and allocate little.

Forward  y = x Wᵀ + b;  y += s (x Aᵀ) Bᵀ  in place. Kept for the backward: x, the small x Aᵀ, and
the weights. Backward, with g = dY B:  dA = s gᵀ x,  dB = s dYᵀ (x Aᵀ),  dX = dY W + s g A.
W and b are frozen, so no gradient of theirs is ever formed.

Over a base in 16 bits A and B stay in fp32, and so do their products. What goes in is kept as it came, in 16 bits and
once for all layers that share it, and is widened again for the backward.
"""

from typing import Any

import torch
from torch import Tensor

from core.lora.columns import product


class _FusedLoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor,
                scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        y = x.new_empty(*x.shape[:-1], weight.shape[0])  # no view: Falcon adds to it in place
        low = flat @ lora_a.T  # (N, r)
        product(flat, weight.T, bias, out=y.view(-1, y.shape[-1])).addmm_(low, lora_b.T, alpha=scale)
        ctx.save_for_backward(flat, low, weight, lora_a, lora_b)
        ctx.scale = scale
        ctx.x_shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        flat, low, weight, lora_a, lora_b = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])  # (N, out)
        grad_x, grad_a, grad_b = low_rank_gradients(ctx, grad, flat, low, weight, lora_a, lora_b)
        return grad_x, None, None, grad_a, grad_b, None


def low_rank_gradients(ctx: Any, grad: Tensor, flat: Tensor, low: Tensor, weight: Tensor, lora_a: Tensor,
                       lora_b: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """dX, dA and dB of x Wᵀ + s (x Aᵀ) Bᵀ.

    Args:
        ctx: holds `scale` and `x_shape`; its first input is x.
        grad: (N, out), of the sum.
        flat: (N, in), the input.
        low: (N, r), x Aᵀ.
        weight: (out, in), frozen.
        lora_a: (r, in).
        lora_b: (out, r).
    """
    grad_low = grad @ lora_b  # (N, r)
    grad_a = torch.mm(grad_low.T, flat).mul_(ctx.scale)
    grad_b = torch.mm(grad.T, low).mul_(ctx.scale)
    grad_x = None
    if ctx.needs_input_grad[0]:  # the lowest adapted layer needs none
        grad_x = product(grad, weight).addmm_(grad_low, lora_a, alpha=ctx.scale).view(ctx.x_shape)
    return grad_x, grad_a, grad_b


def fused_lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor,
                      scale: float) -> Tensor:
    """x Wᵀ + b + scale (x Aᵀ) Bᵀ, differentiable in x, A and B.

    Args:
        x: (..., in).
        weight: (out, in), frozen.
        bias: (out,) or None, frozen.
        lora_a: (r, in).
        lora_b: (out, r).
        scale: alpha / r.
    """
    result = _FusedLoraLinear.apply(x, weight, bias, lora_a, lora_b, scale)
    assert isinstance(result, Tensor)
    return result


class _WidenedUpdate(torch.autograd.Function):
    """s (x Aᵀ) Bᵀ with x in 16 bits, A and B in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        low = flat.to(lora_a.dtype) @ lora_a.T  # (N, r)
        update = (low @ lora_b.T).mul_(scale).to(x.dtype)
        ctx.save_for_backward(flat, low, lora_a, lora_b)
        ctx.scale, ctx.x_shape = scale, x.shape
        return update.view(*x.shape[:-1], lora_b.shape[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        flat, low, lora_a, lora_b = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1]).to(lora_a.dtype).mul_(ctx.scale)  # (N, out)
        grad_low = grad @ lora_b  # (N, r)
        grad_a, grad_b = grad_low.T @ flat.to(lora_a.dtype), grad.T @ low
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_low @ lora_a).to(flat.dtype).view(ctx.x_shape)
        return grad_x, grad_a, grad_b, None


def widened_update(x: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    """scale (x Aᵀ) Bᵀ in the number type of x, computed in that of A and B, differentiable in x, A and B.

    Args:
        x: (..., in), in 16 bits.
        lora_a: (r, in), fp32.
        lora_b: (out, r), fp32.
        scale: alpha / r.
    """
    result = _WidenedUpdate.apply(x, lora_a, lora_b, scale)
    assert isinstance(result, Tensor)
    return result
