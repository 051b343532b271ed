"""QLoRA: LoRA beside a base that is held in 4 or 8 bits (arXiv 2305.14314, equation 5).

    h = x dequantised(W)ᵀ + (alpha / rank) B A x

The base is dequantised for one product at a time, and again for the backward pass, so that only
its packed numbers stay in memory.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from core.lora.layers import LoraLayer
from core.lora.lora import Lora
from core.models.quantise import QuantisedLinear


class QLoraLayer(LoraLayer):
    """A LoraLayer that trains quicker and with less memory over a quantised base in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the number type of the input."""
        base = self.base
        if isinstance(base, QuantisedLinear) and self._can_fuse(x, base):
            product = _FusedQLora.apply(x, base, self.right(), self.lora_b, self.scale)
            assert isinstance(product, Tensor)
            return product if base.bias is None else product + base.bias
        return super().forward(x)

    def _can_fuse(self, x: Tensor, base: QuantisedLinear) -> bool:
        dropping = self.training and self.dropout > 0
        same_type = x.dtype == base.computed_in == self.lora_a.dtype
        return self.enabled and not dropping and same_type and torch.is_grad_enabled()


class _FusedQLora(torch.autograd.Function):
    """x Wᵀ + s (x Aᵀ) Bᵀ with W dequantised where it is needed; the backward as in `core.lora.fused`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: QuantisedLinear, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        y = x.new_empty(*x.shape[:-1], lora_b.shape[0])  # no view: Falcon adds to it in place
        product = y.view(-1, y.shape[-1])  # (N, out)
        torch.mm(flat, base.dequantised().T, out=product)
        low = flat @ lora_a.T  # (N, r)
        product.addmm_(low, lora_b.T, alpha=scale)
        ctx.save_for_backward(flat, low, lora_a, lora_b)
        ctx.base, ctx.scale, ctx.x_shape = base, scale, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        flat, low, lora_a, lora_b = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])  # (N, out)
        grad_low = grad @ lora_b  # (N, r)
        grad_a = torch.mm(grad_low.T, flat).mul_(ctx.scale)
        grad_b = torch.mm(grad.T, low).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ ctx.base.dequantised()).addmm_(grad_low, lora_a, alpha=ctx.scale).view(ctx.x_shape)
        return grad_x, None, grad_a, grad_b, None


class QLora(Lora):
    """LoRA on the quantised base; its file is that of LoRA."""

    kind: ClassVar[type[LoraLayer]] = QLoraLayer
