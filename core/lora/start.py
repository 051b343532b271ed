"""A run that goes on from an adapter: its numbers become the start, if it is exactly of the form of the run."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from core.config import PatternedConfig
from core.errors import AdapterError
from core.lora.adapter_file import AdapterFile, read_adapter
from core.lora.dora import DoraLayer
from core.lora.expert_pairs import split_pairs, stacked
from core.lora.experts import ExpertMatrix, expert_matrices
from core.lora.fused_qkv import FusedQkvLayer
from core.lora.inject import lora_layers
from core.lora.layers import LoraLayer
from core.lora.peft_keys import LoraPair
from core.lora.plain_form import beyond_low_rank
from core.start import adapter_folder, start_problem

_SAME_SCALE = 1e-6  # relative


@torch.no_grad()
def start_from(model: nn.Module, adapter: PatternedConfig, fingerprint: str) -> AdapterFile:
    """Copy the numbers of `adapter.start_from` into the layers of `model`; nothing is copied unless all of it fits.

    Args:
        model: with fresh layers, as the run's method has put them on.
        adapter: the table of the run file.
        fingerprint: of the base model.

    Raises:
        AdapterError: the adapter is damaged, of another base, method, rank or scale, or on other modules.
    """
    problem = start_problem(adapter)
    if problem is not None:
        raise AdapterError(problem[1], problem[2])
    file = read_adapter(adapter_folder(Path(adapter.start_from).expanduser()))
    trained_on = file.origin.get("base_fingerprint")
    if trained_on and trained_on != fingerprint:
        raise AdapterError(f"The adapter in {file.path} was trained on another base model.",
                           "Choose that base model, or start from another adapter.")
    if file.contents.rows or file.contents.parameters or file.extras.words:
        raise AdapterError(f"Training can not go on from {file.path}: {beyond_low_rank(file)}.")
    layers, matrices = lora_layers(model), expert_matrices(model)
    pairs, experts = split_pairs(file.pairs)
    different = sorted((layers.keys() | matrices.keys()) ^ (pairs.keys() | experts.keys()))
    if different:
        where = "The adapter to start from" if different[0] in layers | matrices else "The run"
        raise AdapterError(f"{where} does not change {different[0]}.",
                           "Choose the same target layers as the adapter's.")
    for name, pair in pairs.items():
        _require_same_form(name, layers[name], pair)
    for name, each in experts.items():
        _require_same_experts(name, matrices[name], each)
    for name, pair in pairs.items():
        _copy(layers[name], pair)
    for name, each in experts.items():
        lora_a, lora_b = stacked(each)
        matrices[name].lora_a.copy_(lora_a)
        matrices[name].lora_b.copy_(lora_b)
    return file


def _require_same_form(name: str, layer: LoraLayer, pair: LoraPair) -> None:
    if layer.lora_a.shape != pair.lora_a.shape or layer.left().shape != pair.lora_b.shape:
        raise AdapterError(f"{name} has rank {pair.lora_a.shape[0]} and the size "
                           f"{pair.lora_b.shape[0]} x {pair.lora_a.shape[1]} in the adapter to start from, but rank "
                           f"{layer.rank} and {layer.out_features} x {layer.in_features} in this run.",
                           "Set the same ranks, and choose the same base model.")
    if isinstance(layer, FusedQkvLayer) and not layer.holds(pair.lora_b):
        raise AdapterError(f"{name} was adapted in other parts in the adapter to start from.",
                           "Set the same parts of fused layers.")
    if abs(layer.scale - pair.scale) > _SAME_SCALE * abs(pair.scale):
        raise AdapterError(f"{name} is scaled by {pair.scale:g} in the adapter to start from, but by {layer.scale:g} "
                           "in this run.", "Set the same alpha.")
    if isinstance(layer, DoraLayer) != (pair.magnitude is not None):
        raise AdapterError(f"{name} was trained with another method in the adapter to start from.",
                           "Choose the same method.")


def _require_same_experts(name: str, matrix: ExpertMatrix, pairs: Sequence[LoraPair]) -> None:
    lora_a, lora_b = stacked(pairs)
    if matrix.lora_a.shape != lora_a.shape or matrix.lora_b.shape != lora_b.shape:
        raise AdapterError(f"{name} has {len(pairs)} experts of rank {lora_a.shape[1]} in the adapter to start from, "
                           f"but {matrix.experts} of rank {matrix.rank} in this run.",
                           "Set the same ranks, and choose the same base model.")
    if abs(matrix.scale - pairs[0].scale) > _SAME_SCALE * abs(pairs[0].scale):
        raise AdapterError(f"{name} is scaled by {pairs[0].scale:g} in the adapter to start from, but by "
                           f"{matrix.scale:g} in this run.", "Set the same alpha.")


def _copy(layer: LoraLayer, pair: LoraPair) -> None:
    if isinstance(layer, FusedQkvLayer):
        layer.take(pair.lora_a, pair.lora_b)
        return
    layer.lora_a.copy_(pair.lora_a)
    layer.lora_b.copy_(pair.lora_b)
    if isinstance(layer, DoraLayer) and pair.magnitude is not None:
        layer.magnitude.copy_(pair.magnitude)
