"""Whole parameters and token rows of a model as an adapter file holds them, by PEFT's names and fields."""

from typing import Any

import torch
from torch import Tensor, nn

from core.beside import ROWS_KEY
from core.config import LowRankConfig
from core.lora.inject import lora_layers, module_table
from core.lora.peft_keys import PREFIX
from core.lora.token_rows import token_modules
from core.lora.whole import whole_parameters
from core.records import ModuleInfo
from core.targets import keeps_tied, matches_suffix


def beside_tensors(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The trained whole parameters and token rows of `model`, on the CPU."""
    layers, tokens = lora_layers(model), token_modules(model)
    tensors = {}
    for name, whole in whole_parameters(model).items():
        module, _, parameter = name.rpartition(".")
        inside = "base_layer." if module in layers else "token_adapter.base_layer." if module in tokens else ""
        # a copy: two names of one tensor must be two in the file
        tensors[f"{PREFIX}{module}.{inside}{parameter}"] = whole.value.detach().to("cpu", dtype, copy=True)
    for name, module in tokens.items():
        if module.values is not None:
            tensors[f"{PREFIX}{name}.{ROWS_KEY}"] = module.values.detach().to("cpu", dtype)
    return tensors


def beside_fields(model: nn.Module, adapter: LowRankConfig) -> dict[str, Any]:
    """Fields of adapter_config.json that say which parameters of `model` are trained beside the updates."""
    rows = {name: list(module.indices) for name, module in token_modules(model).items() if module.values is not None}
    return {"bias": adapter.bias, "modules_to_save": _saved_names(model, adapter) or None,
            **({"trainable_token_indices": rows} if rows else {}),
            **({"ensure_weight_tying": True} if keeps_tied(adapter) else {})}


def _saved_names(model: nn.Module, adapter: LowRankConfig) -> list[str]:
    """The names as they were given where PEFT, which looks at the last letters alone, finds the same modules."""
    if not adapter.modules_to_save:
        return []
    table = module_table(model)
    every = {name for name, _ in model.named_modules()} | {info.name for info in table}
    names = []
    for given in adapter.modules_to_save:
        meant = {name for name in every if matches_suffix(name, given)}
        names += [given] if {name for name in every if name.endswith(given)} == meant else sorted(meant)
    return list(dict.fromkeys([*names, *_tied_partners(table, names, adapter)]))


def _tied_partners(table: list[ModuleInfo], names: list[str], adapter: LowRankConfig) -> list[str]:
    head = next((info for info in table if info.tied_to), None)
    if head is None or not keeps_tied(adapter):
        return []
    pair = [head.name, head.tied_to]
    found = [any(matches_suffix(name, given) for given in names) for name in pair]
    return [name for name, has in zip(pair, found, strict=True) if any(found) and not has]
