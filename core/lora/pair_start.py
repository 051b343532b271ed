"""The low-rank updates of an adapter as the start of a run: LoRA, DoRA and QLoRA, and those of experts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from core.errors import AdapterError
from core.lora.dora import DoraLayer
from core.lora.expert_pairs import split_pairs, stacked
from core.lora.experts import ExpertMatrix, expert_matrices
from core.lora.fused_qkv import FusedQkvLayer
from core.lora.inject import lora_layers
from core.lora.layers import LoraLayer
from core.lora.more_layers import TiedLoraHead
from core.lora.peft_keys import LoraPair

SAME_TARGETS = "Choose the same target layers as the adapter's."
_SAME_RANKS = "Set the same ranks, and choose the same base model."
_SAME_SCALE = 1e-6  # relative


def begin_pairs(model: nn.Module, pairs: Mapping[str, LoraPair]) -> list[Callable[[], object]]:
    """What copies `pairs` into the fresh layers of `model`; nothing is copied yet.

    Raises:
        AdapterError: another set of modules, another rank, scale, size or method; names the module.
    """
    layers, matrices = lora_layers(model), expert_matrices(model)
    modules, experts = split_pairs(pairs)
    require_same_modules(layers.keys() | matrices.keys(), modules.keys() | experts.keys())
    for name, pair in modules.items():
        _require_same_form(name, layers[name], pair)
        _require_tied(name, layers, modules)
    for name, each in experts.items():
        _require_same_experts(name, matrices[name], each)
    return [*(partial(_copy, layers[name], pair) for name, pair in modules.items()),
            *(partial(_copy_experts, matrices[name], each) for name, each in experts.items())]


def require_same_modules(own: set[str], theirs: set[str]) -> None:
    """Raises AdapterError, naming the first module, unless the run adapts the modules of the adapter and no others."""
    different = sorted(own ^ theirs)
    if different:
        where = "The adapter to start from" if different[0] in own else "The run"
        raise AdapterError(f"{where} does not change {different[0]}.", SAME_TARGETS)


def require_same_scale(name: str, own: float, theirs: float) -> None:
    """Raises AdapterError unless both scale the update of `name` alike."""
    if abs(own - theirs) > _SAME_SCALE * abs(theirs):
        raise AdapterError(f"{name} is scaled by {theirs:g} in the adapter to start from, but by {own:g} in this run.",
                           "Set the same alpha.")


def _require_same_form(name: str, layer: LoraLayer, pair: LoraPair) -> None:
    rank, inside = pair.lora_a.shape
    outside = pair.lora_b.shape[0]
    if layer.lora_a.shape[0] != rank or layer.lora_a[0].numel() != inside \
            or layer.left().numel() != pair.lora_b.numel():
        raise AdapterError(f"{name} has rank {rank} and the size {outside} x {inside} in the adapter to start from, "
                           f"but rank {layer.rank} and {layer.out_features} x {layer.in_features} in this run.",
                           _SAME_RANKS)
    if isinstance(layer, FusedQkvLayer) and not layer.holds(pair.lora_b):
        raise AdapterError(f"{name} was adapted in other parts in the adapter to start from.",
                           "Set the same parts of fused layers.")
    require_same_scale(name, layer.scale, pair.scale)
    if isinstance(layer, DoraLayer) != (pair.magnitude is not None):
        raise AdapterError(f"{name} was trained with another method in the adapter to start from.",
                           "Choose the same method.")


def _require_tied(name: str, layers: Mapping[str, LoraLayer], pairs: Mapping[str, LoraPair]) -> None:
    """A head that shares the embedding's update must have the same numbers in the adapter."""
    head = layers[name]
    if not isinstance(head, TiedLoraHead):
        return
    embedding = next(pairs[other] for other, layer in layers.items() if layer is head.embedding)
    if not torch.equal(pairs[name].lora_a, embedding.lora_b.T) or not torch.equal(pairs[name].lora_b,
                                                                                  embedding.lora_a.T):
        raise AdapterError(f"{name} shares the embedding's update in this run, but has its own in the adapter to "
                           "start from.", "Switch Keep tied off.")


def _require_same_experts(name: str, matrix: ExpertMatrix, pairs: Sequence[LoraPair]) -> None:
    lora_a, lora_b = stacked(pairs)
    if matrix.lora_a.shape != lora_a.shape or matrix.lora_b.shape != lora_b.shape:
        raise AdapterError(f"{name} has {len(pairs)} experts of rank {lora_a.shape[1]} in the adapter to start from, "
                           f"but {matrix.experts} of rank {matrix.rank} in this run.", _SAME_RANKS)
    require_same_scale(name, matrix.scale, pairs[0].scale)


def _copy(layer: LoraLayer, pair: LoraPair) -> None:
    if isinstance(layer, FusedQkvLayer):
        layer.take(pair.lora_a, pair.lora_b)
        return
    layer.lora_a.copy_(pair.lora_a.reshape(layer.lora_a.shape))  # that of a convolution lies flat in the pair
    layer.lora_b.copy_(pair.lora_b.reshape(layer.lora_b.shape))
    if isinstance(layer, DoraLayer) and pair.magnitude is not None:
        layer.magnitude.copy_(pair.magnitude)


def _copy_experts(matrix: ExpertMatrix, pairs: Sequence[LoraPair]) -> None:
    lora_a, lora_b = stacked(pairs)
    matrix.lora_a.copy_(lora_a)
    matrix.lora_b.copy_(lora_b)
