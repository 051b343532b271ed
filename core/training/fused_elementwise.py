"""Gates and norms of the layers, each as one operation: fewer rounds over memory, and less is kept for the backward.

A gated MLP, act(gate) * up, keeps what it takes and bends the gate once more in the backward pass, instead of keeping
it bent as well: a fifth of all that a layer of Llama's kind keeps. The numbers are the same to the bit.

RMSNorm (arXiv 1910.07467) takes fewer rounds over its input than the single operations of autograd, on the way back
most of all; the result is theirs up to rounding. Only in fp32 and with a frozen weight.

Which modules are such is found by asking one of each kind: where it answers otherwise than the operation that would
stand for it, all of that kind stay as they are.
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
_SIZES = (1e-3, 1.0, 1e3)  # of the numbers on which a module is asked
_CLOSE = 2e-6  # of fp32, the sums of a norm in another order
Operation = Callable[[Any, Tensor], Tensor]  # of a module and what enters it


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        bent = act(gate)
        return bent * up if bent is gate else bent.mul_(up)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
            ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gate, up = ctx.saved_tensors
        grad, of_gate = grad_outputs[0], None
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            bent = ctx.act(leaf)
        if ctx.needs_input_grad[0]:
            (of_gate,) = torch.autograd.grad(bent, leaf, grad * up)
        return of_gate, grad * bent.detach() if ctx.needs_input_grad[1] else None, None


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
    suited: dict[tuple[Any, ...], Operation | None] = {}
    fused = 0
    for module in model.modules():
        candidates = _candidates(module)
        if not candidates:
            continue
        kind = _kind_of(module)
        if kind not in suited:
            suited[kind] = next((each for each in candidates if _answers_alike(module, each)), None)
            if suited[kind] is None:
                _log.info("%s is computed in single operations: it is another kind", type(module).__name__)
        operation = suited[kind]
        if operation is not None:
            # a proxy: else the module would hold itself, and its weights stay in memory until garbage is collected
            itself: Any = weakref.proxy(module)
            module.forward = partial(operation, itself)
            fused += 1
    return fused


def _candidates(module: nn.Module) -> tuple[Operation, ...]:
    """The operations that may stand for a module, by what it has."""
    gate, up, down, act = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
    if all(isinstance(part, nn.Module) for part in (gate, up, down, act)):
        learns = any(True for _ in act.parameters()) if isinstance(act, nn.Module) else True
        return () if learns else (_gated_mlp,)
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or len(list(module.parameters())) != 1 or _eps(module) is None \
            or not isinstance(weight, Tensor) or weight.requires_grad or weight.dtype != torch.float32:
        return ()
    return _norm, partial(_norm, more=1.0)  # Gemma multiplies with its weight and one


def _kind_of(module: nn.Module) -> tuple[Any, ...]:
    """Alike for modules that compute alike: their class, number type, activation and plain settings."""
    settings = tuple(sorted((name, value) for name, value in vars(module).items()
                            if isinstance(value, int | float | str) and name != "training"))
    return type(module), str(next(module.parameters()).dtype), type(getattr(module, "act_fn", None)), settings


def _gated_mlp(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(gated(module.gate_proj(x), module.up_proj(x), module.act_fn))


def _norm(module: Any, x: Tensor, *, more: float = 0.0) -> Tensor:
    weight = module.weight
    if weight.requires_grad or not x.dtype == weight.dtype == torch.float32:  # someone trains or casts it later
        return module.__class__.forward(module, x)  # type() is that of the proxy
    eps = _eps(module)
    assert eps is not None
    return rms_norm(x, weight + more if more else weight, eps)


def _eps(module: Any) -> float | None:
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else None


def _answers_alike(module: nn.Module, operation: Operation) -> bool:
    """Whether the operation gives what the module itself gives: a gate to the bit, a norm but for the rounding.

    The numbers are small, usual and large: some kinds have a bound that only large ones reach, and the small ones tell
    where eps stands.
    """
    try:
        weight, first = next(module.parameters()), getattr(module, "gate_proj", None)
        width = int(weight.shape[-1] if first is None else first.in_features)
        # no random numbers: those of the run come out the same with and without this
        waves = torch.linspace(-3, 4, len(_SIZES) * width, device=weight.device).sin_().view(len(_SIZES), width)
        waves *= torch.tensor(_SIZES, device=weight.device)[:, None]
        x = waves.to(weight.dtype if weight.is_floating_point() else torch.float32)
        with torch.no_grad():
            expected, found = module(x), operation(module, x)
        if not isinstance(expected, Tensor) or expected.shape != found.shape or not expected.isfinite().all():
            return False
        return torch.equal(found, expected) if first is not None else torch.allclose(found, expected, _CLOSE, _CLOSE)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        _log.info("%s is computed in single operations: %r", type(module).__name__, error)
        return False
