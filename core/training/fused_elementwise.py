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
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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


class Fused(NamedTuple):
    """How many modules compute as one operation; of the others of their kind, how many of how many by class."""

    modules: int
    single: dict[str, tuple[int, int]]

    @property
    def words(self) -> str:
        """Which stay in single operations, for people; empty where none does."""
        names = " and ".join(f"{some:,} of {total:,} {name}" for name, (some, total) in sorted(self.single.items()))
        return f"{names} are computed in single operations: one could not be shown to give the same." if names else ""


def fuse_elementwise(model: nn.Module) -> Fused:
    """Let the gated MLPs and RMSNorms of a model compute as one operation each.

    The model is a frozen base: nothing is hung on its modules yet. Adapters may be, afterwards.
    """
    suited: dict[tuple[Any, ...], Operation | None] = {}
    seen, single = Counter[str](), Counter[str]()
    for module in model.modules():
        candidates = _candidates(module)
        if not candidates:
            continue
        kind, name = _kind_of(module), type(module).__name__
        if kind not in suited:
            suited[kind] = next((each for each in candidates if _answers_alike(module, each)), None)
        operation = suited[kind]
        seen[name] += 1
        single[name] += operation is None
        if operation is not None:
            # a proxy: else the module would hold itself, and its weights stay in memory until garbage is collected
            itself: Any = weakref.proxy(module)
            module.forward = partial(operation, itself)
    return Fused(seen.total() - single.total(), {name: (some, seen[name]) for name, some in single.items() if some})


def _candidates(module: nn.Module) -> tuple[Operation, ...]:
    """The operations that may stand for a module, by what it has."""
    act, down = _activation(module), getattr(module, "down_proj", None)
    if isinstance(act, nn.Module) and isinstance(down, nn.Module):
        learns = any(True for _ in act.parameters())
        pair = all(isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj"))
        both = isinstance(getattr(module, "gate_up_proj", None), nn.Module)
        return () if learns else (_gated_mlp,) if pair else (_gated_halves,) if both else ()
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or len(list(module.parameters())) != 1 or _eps(module) is None \
            or not isinstance(weight, Tensor) or weight.requires_grad or weight.dtype != torch.float32:
        return ()
    return _norm, partial(_norm, more=1.0)  # Gemma multiplies with its weight and one


def _activation(module: Any) -> Any:
    """Of a gated MLP, as Llama's kind or Phi's names it."""
    return getattr(module, "act_fn", getattr(module, "activation_fn", None))


def _kind_of(module: nn.Module) -> tuple[Any, ...]:
    """Alike for modules that compute alike: their class, number type, activation and plain settings."""
    settings = tuple(sorted((name, value) for name, value in vars(module).items()
                            if isinstance(value, int | float | str) and name != "training"))
    return type(module), str(next(module.parameters()).dtype), type(_activation(module)), settings


def _gated_mlp(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(gated(module.gate_proj(x), module.up_proj(x), module.act_fn))


def _gated_halves(module: Any, x: Tensor) -> Tensor:
    gate, up = module.gate_up_proj(x).chunk(2, dim=-1)
    return module.down_proj(gated(gate, up, _activation(module)))


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
        weight, first = next(module.parameters()), getattr(module, "gate_proj", getattr(module, "gate_up_proj", None))
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
