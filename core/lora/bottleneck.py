"""Bottleneck adapters: a small network with a narrow middle behind attention and MLP (arXiv 1902.00751).

Each is hung by a hook on the module whose output it follows (core.extra_shapes.bottleneck_places says how that
is found), before the residual and before any norm that the layer puts there. The layer norms of the base stay frozen.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from core.adapter_folder import BOTTLENECK_FOLDER
from core.config import BottleneckConfig
from core.extra_shapes import bottleneck_places
from core.lora.extra import ModelExtra
from core.lora.extra_files import BOTTLENECK_FORMAT, BottleneckFile, write_bottleneck
from core.lora.inject import module_table
from core.lora.method import Material, Method, ParameterGroup

_NAME = "bottleneck"  # of the module below the one that it follows
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class BottleneckLayer(ModelExtra):
    """h + up(activation(down(h))), in fp32.

    Args:
        width: of h.
        size: of the narrow middle.
        activation: gelu, relu or silu.
        generator: draws `down`, uniform within 1 / sqrt(width); `up` is zero, so that h stays h at the start.

    Shapes: down (size, width), down_bias (size,), up (width, size), up_bias (width,); h (..., width).
    """

    child_name = _NAME

    def __init__(self, width: int, size: int, activation: str, generator: torch.Generator | None = None) -> None:
        super().__init__()
        bound = width ** -0.5
        self.down = nn.Parameter(torch.empty(size, width).uniform_(-bound, bound, generator=generator))
        self.down_bias = nn.Parameter(torch.zeros(size))
        self.up = nn.Parameter(torch.zeros(width, size))
        self.up_bias = nn.Parameter(torch.zeros(width))
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., width), in the dtype of `hidden`."""
        narrow = F.linear(hidden.to(self.down.dtype), self.down, self.down_bias)
        change = F.linear(_ACTIVATIONS[self.activation](narrow), self.up, self.up_bias)
        return hidden + change.to(hidden.dtype)

    def file_tensors(self) -> dict[str, Tensor]:
        """What the file holds of this layer, by the names below the module's."""
        return {"down.weight": self.down, "down.bias": self.down_bias, "up.weight": self.up, "up.bias": self.up_bias}

    def hook_on(self, module: nn.Module) -> RemovableHandle:
        """See ModelExtra."""
        return module.register_forward_hook(self._after)

    def _after(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not self.enabled:
            return None
        if isinstance(output, tuple):  # hidden states, and attention weights or router logits
            return (self(output[0]), *output[1:])
        return self(output)


def bottleneck_layers(model: nn.Module) -> dict[str, BottleneckLayer]:
    """The bottleneck adapters of `model` by the module that they follow, in the model's order."""
    return {name.removesuffix(f".{_NAME}"): module for name, module in model.named_modules()
            if isinstance(module, BottleneckLayer)}


def fitted_bottleneck(model: PreTrainedModel, file: BottleneckFile) -> list[BottleneckLayer]:
    """Bottleneck adapters from the disk that are meant for `model`, which they must fit (`extra_misfit`)."""
    layers = []
    for module, tensors in file.tensors.items():
        layer = BottleneckLayer(len(tensors["up.bias"]), file.size, file.activation)
        with torch.no_grad():
            for part, parameter in layer.file_tensors().items():
                parameter.copy_(tensors[part])
        layer.requires_grad_(False).eval()
        layer.meant_for(model, module)
        layers.append(layer)
    return layers


class Bottleneck(Method):
    """Bottleneck adapters in every chosen layer."""

    folder = BOTTLENECK_FOLDER

    def __init__(self, config: BottleneckConfig) -> None:
        self.config = config

    def install(self, model: PreTrainedModel, material: Material) -> None:
        """Hang one on every place. Raises AdapterError where they can not be found."""
        generator = torch.Generator().manual_seed(material.seed)
        for place in bottleneck_places(module_table(model), self.config):
            layer = BottleneckLayer(place.width, self.config.size, self.config.activation, generator)
            layer.meant_for(model, place.module)
            layer.hang()

    def groups(self, model: PreTrainedModel) -> list[ParameterGroup]:
        """All of them alike."""
        return [ParameterGroup({f"{name}.{_NAME}.{part}": parameter for name, layer in bottleneck_layers(model).items()
                                for part, parameter in layer.named_parameters()})]

    def write(self, folder: Path, model: PreTrainedModel, dtype: torch.dtype, base_name: str,
              origin: dict[str, Any]) -> None:
        """bottleneck_config.json and bottleneck.safetensors; see core.lora.extra_files."""
        tensors = {f"{name}.{part}": tensor.detach().to("cpu", dtype).contiguous()
                   for name, layer in bottleneck_layers(model).items() for part, tensor in layer.file_tensors().items()}
        write_bottleneck(folder, tensors, {
            "format": BOTTLENECK_FORMAT, "base_model_name_or_path": base_name, "size": self.config.size,
            "activation": self.config.activation, "placement": self.config.placement,
            "first_layer": self.config.first_layer, "last_layer": self.config.last_layer,
        })
