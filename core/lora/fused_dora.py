"""The DoRA product as one autograd function, beside `core.lora.fused`.

With V = W + s B A, the row lengths n = ||V|| and the shares c = m / n, n held constant (arXiv 2402.09353,
section 4.3):

    forward   z = x Vᵀ = x Wᵀ + s (x Aᵀ) Bᵀ,   y = c z + b
    backward  dm = Σ dY z / n,   dZ = c dY,   g = dZ B,   dA = s gᵀ x,   dB = s dZᵀ (x Aᵀ),   dX = dZ W + s g A

Kept for the backward: x, the small x Aᵀ, z and the weights. V is never formed.
"""

from typing import Any

import torch
from torch import Tensor

from core.lora.columns import product
from core.lora.fused import low_rank_gradients


class _FusedDoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor,
                magnitude: Tensor, norm: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        low = flat @ lora_a.T  # (N, r)
        straight = product(flat, weight.T).addmm_(low, lora_b.T, alpha=scale)  # (N, out)
        share = magnitude / norm
        y = x.new_empty(*x.shape[:-1], weight.shape[0])  # no view: Falcon adds to it in place
        scaled = y.view(-1, y.shape[-1])  # (N, out)
        if bias is None:
            torch.mul(straight, share, out=scaled)
        else:
            torch.addcmul(bias, straight, share, out=scaled)
        ctx.save_for_backward(flat, low, straight, weight, lora_a, lora_b, norm, share)
        ctx.scale = scale
        ctx.x_shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        flat, low, straight, weight, lora_a, lora_b, norm, share = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])  # (N, out)
        buffer = grad * straight
        grad_magnitude = buffer.sum(dim=0).div_(norm)
        grad = torch.mul(grad, share, out=buffer)
        grad_x, grad_a, grad_b = low_rank_gradients(ctx, grad, flat, low, weight, lora_a, lora_b)
        return grad_x, None, None, grad_a, grad_b, grad_magnitude, None, None


def fused_dora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor,
                      magnitude: Tensor, norm: Tensor, scale: float) -> Tensor:
    """magnitude / norm · (x Wᵀ + scale (x Aᵀ) Bᵀ) + b, differentiable in x, A, B and magnitude.

    Args:
        x: (..., in).
        weight: (out, in), frozen.
        bias: (out,) or None, frozen.
        lora_a: (r, in).
        lora_b: (out, r).
        magnitude: (out,).
        norm: ||W + scale B A|| by rows, (out,), held constant.
        scale: alpha / r.
    """
    result = _FusedDoraLinear.apply(x, weight, bias, lora_a, lora_b, magnitude, norm, scale)
    assert isinstance(result, Tensor)
    return result
