"""Gates and norms of the layers, each as one operation: fewer rounds over memory, and less is kept for the backward.

A gated MLP, act(gate) * up, keeps what it takes and bends the gate once more in the backward pass, instead of keeping
it bent as well: a fifth of all that a layer of Llama's kind keeps. The numbers are the same to the bit.

RMSNorm (arXiv 1910.07467) takes three rounds over its input where autograd takes four, and four instead of nine on
the way back; the result is that of the single operations up to rounding. Only in fp32 and with a frozen weight.

Which modules are such is found by asking them: where one of a class answers otherwise than the operation that would
stand for it, all of that class stay as they are.
"""

import logging
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_log = logging.getLogger(__name__)
_PROBE_ROWS = 2
_CLOSE = 2e-6  # of fp32, the sums of a norm in another order


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        bent = act(gate)
        return bent * up if bent is gate else bent.mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        grad = grad_outputs[0]
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            bent = ctx.act(leaf)
        (of_gate,) = torch.autograd.grad(bent, leaf, grad * up)
        return of_gate, grad * bent.detach(), None


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, scale, factor)
        return (x * scale).mul_(factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        x, scale, factor = ctx.saved_tensors
        found = grad_outputs[0] * factor
        along = torch.linalg.vecdot(found, x).unsqueeze(-1)  # what only makes x longer changes nothing
        along.mul_(scale).mul_(scale).div_(-x.shape[-1])
        return found.addcmul_(x, along).mul_(scale), None, None


def gated(gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """act(gate) * up, all of the same shape; `act` works on each number alone."""
    result = _Gated.apply(gate, up, act)
    assert isinstance(result, Tensor)
    return result


def rms_norm(x: Tensor, factor: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * factor, differentiable in x only.

    Args:
        x: (..., n), fp32.
        factor: (n,), fp32.
        eps: added to the mean.
    """
    result = _RmsNorm.apply(x, factor, eps)
    assert isinstance(result, Tensor)
    return result


def fuse_elementwise(model: nn.Module) -> int:
    """Let the gated MLPs and RMSNorms of a model compute as one operation each; returns how many do.

    The model is a frozen base: nothing is hung on its modules yet. Adapters may be, afterwards.
    """
    suits: dict[tuple[type, str], bool] = {}
    fused = 0
    for module in model.modules():
        forward = _forward_for(module)
        if forward is None:
            continue
        kind = (type(module), str(next(module.parameters()).dtype))
        if kind not in suits:
            suits[kind] = _answers_alike(module, forward)
        if suits[kind]:
            # a proxy: else the module would hold itself, and its weights stay in memory until garbage is collected
            itself: Any = weakref.proxy(module)
            module.forward = partial(forward, itself)
            fused += 1
    return fused


def _forward_for(module: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    """The operation that may stand for a module, by what it has."""
    parts = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
    if all(isinstance(part, nn.Module) for part in parts):
        return _gated_mlp
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or len(list(module.parameters())) != 1 or _eps(module) is None \
            or not isinstance(weight, Tensor) or weight.requires_grad or weight.dtype != torch.float32:
        return None
    return _plus_one_norm if _adds_one(module, weight) else _norm


def _gated_mlp(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(gated(module.gate_proj(x), module.up_proj(x), module.act_fn))


def _norm(module: Any, x: Tensor, more: float = 0.0) -> Tensor:
    weight = module.weight
    if weight.requires_grad or not x.dtype == weight.dtype == torch.float32:  # someone trains or casts it later
        return module.__class__.forward(module, x)  # type() is that of the proxy
    eps = _eps(module)
    assert eps is not None
    return rms_norm(x, weight + more if more else weight, eps)


def _plus_one_norm(module: Any, x: Tensor) -> Tensor:
    return _norm(module, x, 1.0)


def _eps(module: Any) -> float | None:
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else None


def _adds_one(module: nn.Module, weight: Tensor) -> bool:
    """True where a norm multiplies with its weight and one (Gemma), which what it makes of ones tells."""
    with torch.no_grad():
        ones = module(torch.ones_like(weight)[None])[0]
    return bool(((ones - weight - 1).abs() < (ones - weight).abs()).all())


def _answers_alike(module: nn.Module, forward: Callable[[Any, Tensor], Tensor]) -> bool:
    """Whether the operation gives what the module itself gives."""
    first: Any = getattr(module, "gate_proj", None)
    weight = next(module.parameters())
    width = first.in_features if first is not None else weight.shape[-1]
    # no random numbers: those of the run come out the same with and without this
    numbers = torch.linspace(-3, 4, _PROBE_ROWS * width, device=weight.device).sin_().view(_PROBE_ROWS, width)
    x = numbers.to(weight.dtype if weight.is_floating_point() else torch.float32)
    try:
        with torch.no_grad():
            expected, found = module(x), forward(module, x)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        _log.info("%s is computed in single operations: %r", type(module).__name__, error)
        return False
    alike = isinstance(expected, Tensor) and expected.shape == found.shape \
        and bool(torch.allclose(found, expected, rtol=_CLOSE, atol=_CLOSE))
    if not alike:
        _log.info("%s is computed in single operations: it is another kind", type(module).__name__)
    return alike
