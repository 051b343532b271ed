"""Put LoRA layers into a model, switch them off, take them out."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from transformers.pytorch_utils import Conv1D

from core.beside import pattern_told
from core.config import LowRankConfig
from core.errors import AdapterError
from core.fused_parts import chosen_parts, part_rows, parts_problem
from core.lora.experts import ExpertsLayer, expert_matrices, expert_parameters, remove_experts, wrap_expert
from core.lora.extra import ModelExtra, extras_disabled, take_out_extras
from core.lora.fused_qkv import fused_kind, layout_of, qkv_layout
from core.lora.layers import LoraLayer, linear_shape
from core.lora.more_layers import LoraEmbedding, TiedLoraHead, kind_for, unadaptable
from core.lora.token_rows import TokenEmbedding, TokenHead, take_out_rows, token_modules
from core.lora.whole import frozen_value, own_tensors, take_out_whole, unwrapped, whole_parameters
from core.records import ModuleInfo
from core.targets import alpha_of, experts_problem, rank_of, scale_of, select_targets, tied_head


def module_table(model: nn.Module) -> list[ModuleInfo]:
    """Every module of `model` that holds a weight of its own, in the model's order.

    A LoraLayer is listed as the layer that it wraps.
    """
    head, embedding = _ends(model)
    table = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, ModelExtra | ParametrizationList):  # no part of the model itself
            continue
        wrapped = isinstance(module, LoraLayer | ExpertsLayer | TokenEmbedding | TokenHead)
        if wrapped:
            inside = (f"{name}.",)
        described = module.base if wrapped else module
        experts = _describe_experts(name, described)
        table += experts
        info = _describe(name, described, is_output_head=module is head,
                         listed=sum(item.parameters for item in experts))
        if info is not None:
            table.append(_with_ends(_with_parts(info, model), module, head, embedding))
    return table


def _ends(model: nn.Module) -> tuple[nn.Module | None, tuple[str, nn.Module] | None]:
    """The output head, and the input embedding with its name."""
    get_head, get_embedding = (getattr(model, f"get_{side}_embeddings", None) for side in ("output", "input"))
    try:
        embedding = get_embedding() if get_embedding else None
    except NotImplementedError:
        embedding = None
    named = next(((name, module) for name, module in model.named_modules() if module is embedding), None)
    return get_head() if get_head else None, named


def _with_ends(info: ModuleInfo, module: nn.Module, head: nn.Module | None,
               embedding: tuple[str, nn.Module] | None) -> ModuleInfo:
    """`info` with what only the ends of a model have."""
    if embedding is None or (module is not head and module is not embedding[1]):
        return info
    shared = module is head and frozen_value(unwrapped(module)) is frozen_value(unwrapped(embedding[1]))
    return replace(info, is_input_embedding=module is embedding[1], tied_to=embedding[0] if shared else "")


def _describe_experts(name: str, module: nn.Module) -> list[ModuleInfo]:
    """The parameters of `module` that hold a linear map of every expert, each listed by its own name."""
    return [ModuleInfo(f"{name}.{parameter}", parameter, _layer_of(name), "Experts", in_features, out_features,
                       parameters=experts * in_features * out_features, experts=experts)
            for parameter, (experts, in_features, out_features) in expert_parameters(module).items()]


def _with_parts(info: ModuleInfo, model: nn.Module) -> ModuleInfo:
    config = getattr(model, "config", None)
    layout = layout_of(config, info.name, info.out_features) if info.type in ("Linear", "Conv1D") and config else None
    return info if layout is None else replace(info, qkv_rows=layout.totals)


def _layer_of(name: str) -> int:
    layer = re.search(r"\.(\d+)\.", f".{name}.")
    return int(layer.group(1)) if layer else -1


def _describe(name: str, module: nn.Module, is_output_head: bool, listed: int = 0) -> ModuleInfo | None:
    tensors = own_tensors(module)
    parameters = sum(item.numel() for item in tensors.values()) - listed
    if not name or parameters == 0:
        return None
    if isinstance(module, nn.Linear):
        kind, shape = "Linear", linear_shape(module)
    elif isinstance(module, Conv1D):
        kind, shape = "Conv1D", linear_shape(module)
    elif isinstance(module, nn.Embedding):
        kind, shape = "Embedding", (module.num_embeddings, module.embedding_dim)
    elif isinstance(module, nn.Conv1d | nn.Conv2d) and not unadaptable(module):
        kind = "Conv1d" if isinstance(module, nn.Conv1d) else "Conv2d"
        shape = (module.weight[0].numel(), module.out_channels)
    else:
        kind, shape = "Other", (0, 0)
    return ModuleInfo(name, name.rpartition(".")[2], _layer_of(name), kind, *shape,
                      parameters=parameters, is_output_head=is_output_head,
                      tensors=tuple((key, tuple(tensor.shape)) for key, tensor in tensors.items()))


def inject(model: nn.Module, adapter: LowRankConfig, seed: int,
           kind: type[LoraLayer] = LoraLayer) -> dict[str, LoraLayer]:
    """Freeze `model` and put a layer of `kind` on every chosen module.

    Returns the layers by module name, in the model's order; those of experts are in `expert_matrices`. The same
    seed draws the same A.

    Raises:
        AdapterError: the targets match nothing, or the rank is above a layer's size.
    """
    chosen = select_targets(module_table(model), adapter)
    problem = parts_problem(chosen, adapter) or experts_problem(chosen, adapter) or pattern_told(chosen, adapter)
    if problem is not None:
        raise AdapterError(*problem[1:])
    for info in chosen:
        smallest = min(info.in_features, info.out_features, *part_rows(info, chosen_parts(info, adapter)))
        rank = rank_of(info.name, adapter)
        if rank > smallest:
            raise AdapterError(f"Rank {rank} is above the size of {info.name} ({smallest}).",
                               f"Choose a rank of at most {smallest}.")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    tied = tied_head(chosen, adapter)
    for info in chosen:
        if info is tied:  # behind the embedding, whose update it shares
            continue
        rank, alpha = rank_of(info.name, adapter), alpha_of(info.name, adapter)
        if info.experts:
            wrap_expert(model, info.name, rank, alpha, generator).scale = scale_of(info.name, adapter)
            continue
        parts = chosen_parts(info, adapter)
        layer = wrap(model, info.name, rank, alpha, adapter.dropout, generator,
                     fused_kind(qkv_layout(model, info), parts) if parts else kind)
        layer.scale = scale_of(info.name, adapter)
        layers[info.name] = layer
    if tied is not None:
        layers[tied.name] = tie_head(model, tied.name, layers[tied.tied_to])
    return layers


def tie_head(model: nn.Module, name: str, embedding: LoraLayer) -> LoraLayer:
    """Let the output head called `name` share the embedding's update."""
    head = model.get_submodule(name)
    assert isinstance(head, nn.Linear) and isinstance(embedding, LoraEmbedding)
    layer = TiedLoraHead(head, embedding)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
    return layer


def wrap(model: nn.Module, name: str, rank: int, alpha: float, dropout: float = 0.0,
         generator: torch.Generator | None = None, kind: type[LoraLayer] = LoraLayer) -> LoraLayer:
    """Put one layer of `kind` in the place of the module called `name`.

    Raises:
        AdapterError: there is no such module, or it is not linear.
    """
    parent_name, _, child = name.rpartition(".")
    try:
        parent = model.get_submodule(parent_name)
        base = getattr(parent, child)
        layer = kind_for(base, kind)(base, rank, alpha, dropout, generator)
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
    layers = [*lora_layers(model).values(), *expert_matrices(model).values(), *whole_parameters(model).values(),
              *token_modules(model).values()]
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        with extras_disabled(model):
            yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def remove(model: nn.Module) -> None:
    """Take every LoraLayer out again, and what hangs on the model; the base is as it was."""
    take_out_extras(model)
    remove_experts(model)
    take_out_whole(model)
    take_out_rows(model)
    for name, layer in lora_layers(model).items():
        parent_name, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent_name), child, layer.base)
