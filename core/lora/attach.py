"""An adapter from the disk onto a model."""

from pathlib import Path

import torch
from torch import nn

from core.errors import AdapterError
from core.lora.adapter_file import AdapterFile, read_adapter
from core.lora.dora import DoraLayer
from core.lora.inject import module_table, wrap
from core.lora.layers import LoraLayer
from core.targets import ADAPTABLE


def load_adapter(folder: Path, model: nn.Module) -> AdapterFile:
    """Put the adapter in `folder` onto `model`; nothing is changed unless all of it fits.

    Raises:
        AdapterError: as `read_adapter`, or a module that the model lacks or whose shape differs.
    """
    adapter = read_adapter(folder)
    shapes = {info.name: (info.in_features, info.out_features) for info in module_table(model)
              if info.type in ADAPTABLE}
    for module, pair in adapter.pairs.items():
        wanted = (pair.lora_a.shape[1], pair.lora_b.shape[0])
        if shapes.get(module) != wanted:
            has = f"is {shapes[module]}" if module in shapes else "does not exist"
            raise AdapterError(f"The adapter in {folder} does not fit this model: {module} should take and give "
                               f"{wanted} but {has}.", "Choose the base model that the adapter was trained on.")
    model.requires_grad_(False)
    for module, pair in adapter.pairs.items():
        rank = pair.lora_a.shape[0]
        kind = LoraLayer if pair.magnitude is None else DoraLayer
        dropout = float(adapter.config.get("lora_dropout") or 0.0)
        layer = wrap(model, module, rank, pair.scale * rank, dropout, kind=kind)
        layer.scale = pair.scale  # not through alpha and back, which may round
        with torch.no_grad():
            layer.lora_a.copy_(pair.lora_a)
            layer.lora_b.copy_(pair.lora_b)
            if isinstance(layer, DoraLayer) and pair.magnitude is not None:
                layer.magnitude.copy_(pair.magnitude)
        layer.eval()
    return adapter
