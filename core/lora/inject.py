"""Put LoRA layers into a model, switch them off, take them out."""

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from core.config import LowRankConfig
from core.errors import AdapterError
from core.events import ModuleInfo
from core.lora.layers import LoraLayer, linear_shape
from core.targets import alpha_of, rank_of, scale_of, select_targets


def module_table(model: nn.Module) -> list[ModuleInfo]:
    """Every module of `model` that holds a weight of its own, in the model's order.

    A LoraLayer is listed as the layer that it wraps.
    """
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head else None
    table = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, LoraLayer):
            inside = (f"{name}.",)
        described = module.base if isinstance(module, LoraLayer) else module
        info = _describe(name, described, is_output_head=module is head)
        if info is not None:
            table.append(info)
    return table


def _describe(name: str, module: nn.Module, is_output_head: bool) -> ModuleInfo | None:
    parameters = sum(item.numel() for item in module.parameters(recurse=False))
    if not name or parameters == 0:
        return None
    if isinstance(module, nn.Linear):
        kind, shape = "Linear", linear_shape(module)
    elif isinstance(module, Conv1D):
        kind, shape = "Conv1D", linear_shape(module)
    elif isinstance(module, nn.Embedding):
        kind, shape = "Embedding", (module.num_embeddings, module.embedding_dim)
    else:
        kind, shape = "Other", (0, 0)
    layer = re.search(r"\.(\d+)\.", f".{name}.")
    return ModuleInfo(name, name.rpartition(".")[2], int(layer.group(1)) if layer else -1, kind, *shape,
                      parameters=parameters, is_output_head=is_output_head)


def inject(model: nn.Module, adapter: LowRankConfig, seed: int,
           kind: type[LoraLayer] = LoraLayer) -> dict[str, LoraLayer]:
    """Freeze `model` and put a layer of `kind` on every chosen module.

    Returns the layers by module name, in the model's order. The same seed draws the same A.

    Raises:
        AdapterError: the targets match nothing, or the rank is above a layer's size.
    """
    chosen = select_targets(module_table(model), adapter)
    for info in chosen:
        smallest = min(info.in_features, info.out_features)
        rank = rank_of(info.name, adapter)
        if rank > smallest:
            raise AdapterError(f"Rank {rank} is above the size of {info.name} ({smallest}).",
                               f"Choose a rank of at most {smallest}.")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for info in chosen:
        layer = wrap(model, info.name, rank_of(info.name, adapter), alpha_of(info.name, adapter), adapter.dropout,
                     generator, kind)
        layer.scale = scale_of(info.name, adapter)
        layers[info.name] = layer
    return layers


def wrap(model: nn.Module, name: str, rank: int, alpha: float, dropout: float = 0.0,
         generator: torch.Generator | None = None, kind: type[LoraLayer] = LoraLayer) -> LoraLayer:
    """Put one layer of `kind` in the place of the module called `name`.

    Raises:
        AdapterError: there is no such module, or it is not linear.
    """
    parent_name, _, child = name.rpartition(".")
    try:
        parent = model.get_submodule(parent_name)
        layer = kind(getattr(parent, child), rank, alpha, dropout, generator)
    except AttributeError:
        raise AdapterError(f"The model has no module {name}.", "The adapter belongs to another model.") from None
    except TypeError as error:
        raise AdapterError(f"{name} can not be adapted: {error}.") from None
    setattr(parent, child, layer)
    return layer


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The LoraLayers of `model` by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@contextlib.contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model answers as its base alone."""
    layers = list(lora_layers(model).values())
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def remove(model: nn.Module) -> None:
    """Take every LoraLayer out again; the base is as it was."""
    for name, layer in lora_layers(model).items():
        parent_name, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent_name), child, layer.base)
