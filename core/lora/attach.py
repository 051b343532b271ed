"""An adapter from the disk onto a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from core.errors import AdapterError
from core.lora.adapter_file import AdapterFile, read_adapter
from core.lora.beside_load import fitted_beside, grown_sizes
from core.lora.dora import DoraLayer
from core.lora.expert_pairs import names_of, put_on_experts, split_pairs
from core.lora.extra_load import fitted_extras
from core.lora.inject import module_table, wrap
from core.lora.layers import LoraLayer
from core.lora.peft_keys import Contents, LoraPair
from core.models.quantise import QuantisedLinear
from core.targets import ADAPTABLE, NAMED_ONLY


def load_adapter(folder: Path, model: nn.Module) -> AdapterFile:
    """Put the adapter in `folder` onto `model`; nothing is changed unless all of it fits.

    Raises:
        AdapterError: as `read_adapter`, or a module that the model lacks or whose shape differs.
    """
    adapter = read_adapter(folder)
    shapes = _shapes(model, adapter.contents)
    for module, pair in adapter.pairs.items():
        wanted = (pair.lora_a.shape[1], pair.lora_b.shape[0])
        if shapes.get((module, pair.embedding)) != wanted:
            has = f"is {shapes[module, pair.embedding]}" if (module, pair.embedding) in shapes else "does not exist"
            raise AdapterError(f"The adapter in {folder} does not fit this model: {module} should take and give "
                               f"{wanted} but {has}.", "Choose the base model that the adapter was trained on.")
        if pair.magnitude is not None and isinstance(model.get_submodule(module), QuantisedLinear):
            raise AdapterError(f"The adapter in {folder} is DoRA, which needs the weights themselves, but the base is "
                               "held quantised for another adapter.", "Use it alone.")
    modules, experts = split_pairs(adapter.pairs)
    _require_all_experts(experts, model, folder)
    ready = fitted_extras(adapter.extras, model)
    beside = fitted_beside(adapter.contents, model, folder)
    model.requires_grad_(False)
    put_on_experts(model, experts)  # first, as it may find that it can not
    if beside is not None:  # before the updates, as it may make a vocabulary larger
        beside.hang()
    for module, pair in modules.items():
        rank = pair.lora_a.shape[0]
        if rank == 0:  # AdaLoRA left nothing of it: it is its base
            continue
        kind = LoraLayer if pair.magnitude is None else DoraLayer
        dropout = float(adapter.config.get("lora_dropout") or 0.0)
        layer = wrap(model, module, rank, pair.scale * rank, dropout, kind=kind)
        layer.scale = pair.scale  # not through alpha and back, which may round
        with torch.no_grad():
            layer.lora_a.copy_(pair.lora_a.reshape(layer.lora_a.shape))
            layer.lora_b.copy_(pair.lora_b.reshape(layer.lora_b.shape))
            if isinstance(layer, DoraLayer) and pair.magnitude is not None:
                layer.magnitude.copy_(pair.magnitude)
        layer.eval()
    for extra in ready:
        extra.hang()
    return adapter


def _shapes(model: nn.Module, contents: Contents) -> dict[tuple[str, bool], tuple[int, int]]:
    """(in, out) of every module that can be adapted, by its name and whether it is an embedding."""
    sizes = grown_sizes(contents)
    found = {}
    for info in module_table(model):
        if info.type not in (*ADAPTABLE, *NAMED_ONLY):
            continue
        inside, outside = info.in_features, info.out_features
        if info.is_input_embedding:
            inside = sizes.get(info.name, inside)
        elif info.is_output_head:
            outside = sizes.get(info.name, sizes.get(info.tied_to, outside))
        found |= {(name, info.type == "Embedding"): (inside, outside) for name in names_of(info)}
    return found


def _require_all_experts(experts: Mapping[str, Sequence[LoraPair]], model: nn.Module, folder: Path) -> None:
    counts = {info.name: info.experts for info in module_table(model)}
    for name, pairs in experts.items():
        if len(pairs) != counts[name]:
            raise AdapterError(f"The adapter in {folder} does not fit this model: {name} has {counts[name]} experts, "
                               f"the adapter changes {len(pairs)}.", "Choose the base model that it was trained on.")
