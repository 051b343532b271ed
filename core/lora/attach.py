"""An adapter from the disk onto a model."""

import contextlib
from pathlib import Path

import torch
from torch import nn

from core.errors import AdapterError
from core.lora.adapter_file import AdapterFile, read_adapter
from core.lora.beside_load import fitted_beside
from core.lora.dora import DoraLayer
from core.lora.expert_pairs import put_on_experts, split_pairs
from core.lora.extra_load import fitted_extras
from core.lora.fit import misfit
from core.lora.inject import module_table, remove, wrap
from core.lora.layers import LoraLayer
from core.lora.peft_keys import LoraPair
from core.models.quantise import QuantisedLinear


def load_adapter(folder: Path, model: nn.Module) -> AdapterFile:
    """Put the adapter in `folder` onto `model`, which has none yet; all of it or nothing.

    Raises:
        AdapterError: as `read_adapter`, or a module that the model lacks, whose shape differs or that can not be
            adapted.
    """
    adapter = read_adapter(folder)
    _require_fit(adapter, model)
    modules, experts = split_pairs(adapter.pairs)
    ready = fitted_extras(adapter.extras, model)
    beside = fitted_beside(adapter.contents, model)
    dropout = float(adapter.config.get("lora_dropout") or 0.0)
    model.requires_grad_(False)
    with contextlib.ExitStack() as undo:
        undo.callback(remove, model)
        put_on_experts(model, experts)
        if beside is not None:  # before the updates, as it may make a vocabulary larger
            beside.hang()
        for module, pair in modules.items():
            if pair.lora_a.shape[0] > 0:  # else AdaLoRA left nothing of it: it is its base
                _put_pair(model, module, pair, dropout)
        for extra in ready:
            extra.hang()
        undo.pop_all()  # all of it is on, so nothing is taken off
    return adapter


@torch.no_grad()
def _put_pair(model: nn.Module, module: str, pair: LoraPair, dropout: float) -> None:
    rank = pair.lora_a.shape[0]
    kind = LoraLayer if pair.magnitude is None else DoraLayer
    layer = wrap(model, module, rank, pair.scale * rank, dropout, kind=kind)
    layer.scale = pair.scale  # not through alpha and back, which may round
    layer.lora_a.copy_(pair.lora_a.reshape(layer.lora_a.shape))
    layer.lora_b.copy_(pair.lora_b.reshape(layer.lora_b.shape))
    if isinstance(layer, DoraLayer) and pair.magnitude is not None:
        layer.magnitude.copy_(pair.magnitude)
    layer.eval()


def _require_fit(adapter: AdapterFile, model: nn.Module) -> None:
    table = module_table(model)
    reason = misfit(adapter.contents, table)
    if reason:
        raise AdapterError(f"The adapter in {adapter.path} does not fit this model: {reason}.",
                           "Choose the base model that the adapter was trained on.")
    rows = adapter.contents.rows
    with_rows = {*rows, *(info.name for info in table if info.tied_to in rows)}
    both = next((module for module in adapter.pairs if module in with_rows), "")
    if both:
        raise AdapterError(f"The adapter in {adapter.path} changes {both} as a whole and single rows of it as well, "
                           "which can not be used together here.")
    for module, pair in adapter.pairs.items():
        if pair.magnitude is not None and isinstance(model.get_submodule(module), QuantisedLinear):
            raise AdapterError(f"The adapter in {adapter.path} is DoRA, which needs the weights themselves, but the "
                               "base is held quantised for another adapter.", "Use it alone.")
