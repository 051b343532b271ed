"""The layers below the lowest trained one: where they end, and how a model is run up to there or from there on.

Their output is the same in every epoch, as nothing in them learns or is random. So it need be computed only
once; core.training.frozen_cache keeps it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.data.batching import Batch
from core.lora.method import AdapterModule
from core.lora.prefix import body_of
from core.training.loss import model_inputs


class FrozenPart:
    """The decoder layers 0 … depth - 1 of one model, with all that comes before them.

    Args:
        model: whose layers from `depth` on are trained.
        layers: all of its decoder layers.
        depth: how many of them are frozen, at least one.
    """

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, depth: int) -> None:
        self._model = model
        self._layers = layers
        self.depth = depth
        self._items = 0  # of the tuple that a layer gives; 0: it gives the hidden states themselves

    @property
    def trained_layers(self) -> int:
        """How many layers are above."""
        return len(self._layers) - self.depth

    @property
    def width(self) -> int:
        """Numbers that one token's hidden state has."""
        return int(self._model.config.get_text_config().hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """In which the hidden states are computed."""
        return self._model.dtype

    @property
    def parameters(self) -> int:
        """Numbers of the frozen layers; every token is multiplied with about all of them."""
        return sum(item.numel() for layer in self._layers[:self.depth] for item in layer.parameters())

    @torch.no_grad()
    def states(self, batch: Batch) -> Tensor:
        """The hidden states (B, T, d) that enter the lowest trained layer; no other layer is run.

        Raises:
            NotImplementedError: what the layers of this model hand on is not one state for each token.
        """
        seen: list[Tensor] = []

        def keep(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            self._items = len(output) if isinstance(output, tuple) else 0
            seen.append(output[0] if isinstance(output, tuple) else output)

        handle = self._layers[self.depth - 1].register_forward_hook(keep)
        try:
            with self._passed(range(self.depth, len(self._layers))):
                self._model.base_model(**model_inputs(batch))
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0].shape != (*batch.input_ids.shape, self.width) or seen[0].dtype != self.dtype:
            raise NotImplementedError("the layers hand on more than one state for each token")
        return seen[0]

    @contextlib.contextmanager
    def given(self, states: Tensor) -> Iterator[None]:
        """Inside, the model starts in the middle: `states` (B, T, d) enter the lowest trained layer.

        `states` must have been called before, on any batch.
        """
        with self._passed(range(self.depth), states):
            yield

    @contextlib.contextmanager
    def _passed(self, indices: Sequence[int], given: Tensor | None = None) -> Iterator[None]:
        replaced = [self._layers[index] for index in indices]
        try:
            for index, layer in zip(indices, replaced, strict=True):
                self._layers[index] = _PassedLayer(layer, self._output, given)
            yield
        finally:
            for index, layer in zip(indices, replaced, strict=True):
                self._layers[index] = layer

    def _output(self, hidden: Tensor) -> Any:
        """In the form in which this model's layers give it."""
        return (hidden, *[None] * (self._items - 1)) if self._items else hidden


class _PassedLayer(nn.Module):
    """In the place of a layer that is not run: gives back its input, or what is given instead."""

    def __init__(self, layer: nn.Module, output: Any, given: Tensor | None) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple: as an attribute it would be a part of this module
        self._output = output
        self._given = given

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(B, T, d), whatever else a layer takes."""
        return self._output(hidden_states if self._given is None else self._given)

    def __getattr__(self, name: str) -> Any:
        """Some models ask a layer of what kind it is."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"][0], name)


def find_frozen_part(model: PreTrainedModel) -> tuple[FrozenPart | None, str]:
    """What lies below the lowest trained layer of `model`; None and why where there is nothing or it may change."""
    layers = decoder_layers(model)
    if layers is None:
        return None, "the layers of this model are not known"
    depth = next((index for index, layer in enumerate(layers) if _learns(layer)), len(layers))
    if depth == 0:
        return None, "the lowest layer is trained"
    if depth == len(layers):
        return None, "no layer is trained"
    above: list[nn.Module | None] = [*layers[depth:], model.get_output_embeddings()]
    known = {id(inner) for module in above if module is not None for inner in module.modules()}
    below = [module for module in model.modules() if id(module) not in known]
    # what is not known to stand above the layers may stand below
    if any(isinstance(module, AdapterModule) or _is_trained(module) for module in below):
        return None, "something besides the layers is trained"
    if any(module.training for module in below):
        return None, "the layers below are in training mode, so their output may be random"
    return FrozenPart(model, layers, depth), ""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The layers of `model` in their order; None where they can not be told from other modules."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    found = [child for child in body_of(model).children() if isinstance(child, nn.ModuleList) and len(child) == count]
    return found[0] if len(found) == 1 else None


def _learns(module: nn.Module) -> bool:
    """True where something in `module` is trained, or put on the base by a method."""
    return any(isinstance(inner, AdapterModule) or _is_trained(inner) for inner in module.modules())


def _is_trained(module: nn.Module) -> bool:
    """True where a parameter of `module` itself, not of those inside of it, is trained."""
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))
