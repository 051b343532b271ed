"""What several adapters make of one module of the base, each with its strength."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core.errors import AdapterError
from core.lora.dora import DoraLayer
from core.lora.experts import ExpertsLayer, joined_experts
from core.lora.layers import LoraLayer
from core.lora.method import AdapterModule
from core.lora.more_layers import LoraEmbedding, TiedLoraHead


class MixedLayer(AdapterModule):
    """One module of the base with what several adapters make of it.

    Args:
        base: the module that was there.
        strengths: shared by all layers of a set; an adapter that is not in it, or has 0, costs nothing.

    The adapted modules belong to the set, not to the model: they are not among its parameters.
    """

    def __init__(self, base: nn.Module, strengths: Mapping[str, float]) -> None:
        super().__init__()
        self.base = base
        self.adapted: dict[str, nn.Module] = {}
        self.merged = False  # the changes are in the base's weight already
        self._strengths = strengths
        # in a tuple: as an attribute it would be a part of this module
        self._joined: tuple[tuple[tuple[int, float], ...], tuple[ExpertsLayer]] | None = None

    def __getattr__(self, name: str) -> Any:
        """What is not here is the base's: some models read a weight past `forward`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def active(self) -> list[tuple[nn.Module, float]]:
        """The adapted modules that count now, with their strengths."""
        return [(module, self._strengths[name]) for name, module in self.adapted.items()
                if self._strengths.get(name, 0.0) != 0.0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base, with the weighted changes of the adapters that count."""
        active = [] if self.merged else self.active()
        if not active:
            return self.base(*args, **kwargs)
        if len(active) == 1 and active[0][1] == 1.0:
            return active[0][0](*args, **kwargs)
        if isinstance(active[0][0], ExpertsLayer):  # what lies between their two maps is no sum of outputs
            return self._experts(active)(*args, **kwargs)
        base = self.base(*args, **kwargs)
        result = base
        for module, strength in active:
            if type(module) is LoraLayer:  # the update alone, without computing the base once more
                update = F.linear(F.linear(args[0].to(module.lora_a.dtype), module.lora_a), module.lora_b)
                result = result + (strength * module.scale * update).to(base.dtype)
            else:
                changed = module(*args, **kwargs)  # longer where new tokens have made the vocabulary larger
                result = as_large(result, changed.shape)
                result = result + strength * (as_large(changed, result.shape) - as_large(base, result.shape))
        return result


    def _experts(self, active: list[tuple[nn.Module, float]]) -> ExpertsLayer:
        """The experts with all updates; joined anew when the strengths have changed."""
        key = tuple((id(module), strength) for module, strength in active)
        if self._joined is None or self._joined[0] != key:
            layers = [(module, strength) for module, strength in active if isinstance(module, ExpertsLayer)]
            self._joined = (key, (joined_experts(self.base, layers),))
        return self._joined[1][0]


def as_large(tensor: Tensor, shape: torch.Size) -> Tensor:
    """`tensor` with zeros behind it up to `shape`, where that is larger."""
    missing = [max(0, wanted - has) for has, wanted in zip(tensor.shape, shape, strict=True)]
    return F.pad(tensor, [size for each in reversed(missing) for size in (0, each)]) if any(missing) else tensor


def merged_weight(place: str, base: nn.Module, active: list[tuple[nn.Module, float]]) -> Tensor:
    """W + Σ strength · (W' - W) in the type of W, as it is stored."""
    weight = getattr(base, "weight", None)  # experts have none of this name
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or weight.ndim < 2:
        raise AdapterError(f"{place} can not be merged in memory: its weights are held in another form.")
    total = weight.float()
    for module, strength in active:
        change = _change(place, module)
        total = total + strength * (change.T if isinstance(base, Conv1D) else change)
    merged = total.to(weight.dtype)
    if not torch.isfinite(merged).all():
        raise AdapterError(f"Merging gives numbers that are not finite in {place}.", "Choose a smaller strength.")
    return merged


def _change(place: str, module: nn.Module) -> Tensor:
    """W' - W of one adapted module in fp32, as the weight is stored, but (out, in) for Conv1D."""
    if isinstance(module, TiedLoraHead):
        return module.delta()
    if isinstance(module, LoraEmbedding):
        return module.delta().T  # stored as (in, out)
    if isinstance(module, DoraLayer):
        weight = module.weight.T if isinstance(module.base, Conv1D) else module.weight
        changed = weight.float() + module.delta()
        return (module.magnitude / changed.norm(dim=1))[:, None] * changed - weight.float()
    if isinstance(module, LoraLayer):
        return module.delta()
    raise AdapterError(f"{place} can not be merged in memory: it is changed by {type(module).__name__}.")
