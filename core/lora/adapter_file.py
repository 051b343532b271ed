"""An adapter on disk, in PEFT layout, both ways.

`adapter_config.json` says how, `adapter_model.safetensors` holds the numbers by the names that are
explained in `peft_keys`;
`workbench.json` beside them says which base the adapter was trained on.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core import files
from core.adapter_folder import ADALORA_TYPE, CONFIG_NAME, ORIGIN_NAME, WEIGHTS_NAME, read_object
from core.adapter_shapes import is_exact
from core.config import DoraConfig, PatternedConfig
from core.errors import AdapterError
from core.expert_names import linear_parameters, target_parameters, written_module
from core.lora import adalora_file
from core.lora.beside_file import beside_fields, beside_tensors
from core.lora.expert_layout import to_file
from core.lora.experts import expert_matrices
from core.lora.extra_files import Extras, copy_extras, read_extras
from core.lora.fused_qkv import alpha_factor, noted_parts
from core.lora.inject import lora_layers, module_table
from core.lora.layers import LoraLayer
from core.lora.peft_keys import PREFIX, Contents, LoraPair, sort_tensors
from core.lora.tensor_file import write_tensors
from core.lora.tokenizer_files import copy_tokenizer
from core.peft_fields import refuse_unknown_meaning
from core.targets import ADAPTABLE, NAMED_ONLY, alpha_of, matches_suffix

_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class AdapterFile:
    """A validated adapter: what it changes (see `Contents`), its config as read, where it came from, and what stands
    beside it or alone (see `Extras`)."""

    path: Path
    contents: Contents
    config: dict[str, Any]
    origin: dict[str, Any] = field(default_factory=dict)
    extras: Extras = field(default_factory=Extras)

    @property
    def pairs(self) -> dict[str, LoraPair]:
        """The low-rank updates by module name."""
        return self.contents.pairs

    @property
    def has_own_files(self) -> bool:
        """False where the folder holds sub-folders alone."""
        return (self.path / WEIGHTS_NAME).exists()


def adapter_tensors(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The adapter of `model` under PEFT's names, on the CPU."""
    tensors = {}
    for name, layer in lora_layers(model).items():
        for part, tensor in layer.peft_tensors().items():
            key = f"{PREFIX}{name}.{part}"
            tensors[key] = saved_as(key, tensor.detach(), dtype).cpu().contiguous()
    matrices = expert_matrices(model)
    for name, matrix in matrices.items():
        for part, tensor in to_file(matrix.lora_a.detach(), matrix.lora_b.detach()).items():
            tensors[f"{PREFIX}{written_module(name, matrices)}.{part}"] = tensor.to("cpu", dtype).contiguous()
    return tensors | beside_tensors(model, dtype)


def saved_as(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in the number type in which the file holds it where `dtype` is chosen."""
    return tensor.to(torch.float32 if is_exact(key) else dtype)


def peft_config(model: nn.Module, adapter: PatternedConfig, base_name: str) -> dict[str, Any]:
    """adapter_config.json for the adapter of `model`; PEFT, vLLM and llama.cpp read it."""
    layers, experts = lora_layers(model), expert_matrices(model)
    rank, alpha = adapter.rank, adapter.alpha
    if adapter.takes_from_base:  # the start doubles the rank; alpha grows so that the scale stays
        rank, alpha = 2 * rank, alpha * (math.sqrt(2) if adapter.rslora else 2)
    ranks = {name: layer.rank if name in experts else layer.written_rank for name, layer in (layers | experts).items()}
    ranks = {name: value for name, value in ranks.items() if value != rank}
    alphas = {name: alpha_of(name, adapter) * alpha_factor(layer, adapter.rslora)
              for name, layer in (layers | experts).items()}
    alphas = {name: value for name, value in alphas.items() if value != alpha}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name,
        "r": rank, "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha, "lora_dropout": adapter.dropout,
        **_targets(model, layers, adapter),
        "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in layers.values()),
        "init_lora_weights": True, "inference_mode": True, "use_rslora": adapter.rslora,
        "use_dora": isinstance(adapter, DoraConfig), "rank_pattern": ranks, "alpha_pattern": alphas,
        "layers_to_transform": None, "layers_pattern": None, "revision": None, **beside_fields(model, adapter),
    }


def _targets(model: nn.Module, layers: dict[str, LoraLayer], adapter: PatternedConfig) -> dict[str, Any]:
    """`target_modules`, and `target_parameters` where PEFT needs it: for experts and what PEFT mistakes for them."""
    all_experts = [info.name for info in module_table(model) if info.type == "Experts"]
    if not all_experts:
        return {"target_modules": target_names(model, layers)}
    experts = expert_matrices(model)
    # PEFT has neither dropout nor DoRA for what is named as a parameter
    plain = isinstance(adapter, DoraConfig) or adapter.dropout > 0
    mistaken = [] if plain else linear_parameters(list(layers))
    modules = {name: layer for name, layer in layers.items() if name not in mistaken}
    parameters = [*target_parameters(experts, all_experts), *[f"{name}.weight" for name in mistaken]]
    return {"target_modules": target_names(model, modules) if modules else []} | (
        {"target_parameters": parameters} if parameters else {})


def target_names(model: nn.Module, layers: dict[str, LoraLayer]) -> list[str]:
    """Short names (q_proj) where they mean exactly the adapted modules, else full names."""
    kinds = sorted({name.rpartition(".")[2] for name in layers})
    able = [info.name for info in module_table(model) if info.type in (*ADAPTABLE, *NAMED_ONLY)
            and info.type != "Experts"]
    meant = {name for name in able if any(matches_suffix(name, kind) for kind in kinds)}
    return kinds if meant == set(layers) else sorted(layers)


def write_adapter(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], origin: dict[str, Any]) -> None:
    """Write the three files into `folder`, which exists; the caller makes the folder whole (files.atomic_folder)."""
    write_tensors(folder / WEIGHTS_NAME, tensors, {"format": "pt"})
    files.write_text(folder / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_origin(folder, origin)


def write_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Write what `read_origin` reads."""
    files.write_text(folder / ORIGIN_NAME, json.dumps(origin, indent=2) + "\n")


def save_adapter(folder: Path, model: nn.Module, adapter: PatternedConfig, base_name: str,
                 origin: dict[str, Any] | None = None) -> None:
    """Write the adapter of `model` as a new folder, in `adapter.save_dtype`, whole or not at all."""
    with files.atomic_folder(folder) as temporary:
        write_adapter(temporary, adapter_tensors(model, _TORCH_DTYPES[adapter.save_dtype]),
                      peft_config(model, adapter, base_name), {**(origin or {}), **noted_parts(model)})


def copy_adapter(source: Path, folder: Path, save_dtype: str) -> None:
    """Write the adapter in `source` again as `folder`, in another number type; replaces an older one whole."""
    adapter = read_adapter(source)  # checks it
    dtype = _TORCH_DTYPES[save_dtype]
    with files.replaced_folder(folder) as temporary:
        if adapter.has_own_files:
            tensors = {name: saved_as(name, tensor, dtype) for name, tensor in load_file(source / WEIGHTS_NAME).items()}
            write_adapter(temporary, tensors, adapter.config, adapter.origin)
        else:
            write_origin(temporary, adapter.origin)
        copy_tokenizer(source, temporary)
        copy_extras(source, temporary, dtype, adapter.origin)


def read_adapter(folder: Path) -> AdapterFile:
    """Read and check an adapter folder in PEFT layout.

    Raises:
        AdapterError: files missing or damaged, a field that we can not honour, half a pair,
            shapes that do not fit, or numbers that are not finite.
    """
    extras = read_extras(folder)
    if extras.stands_alone_in(folder):
        return AdapterFile(folder, Contents(), extras.config, read_origin(folder), extras)
    config = read_object(folder / CONFIG_NAME)
    refuse_unknown_meaning(config, folder)
    try:
        tensors = load_file(folder / WEIGHTS_NAME)
    except FileNotFoundError:
        raise AdapterError(f"{folder} has no {WEIGHTS_NAME}.",
                           "Adapters are read from safetensors only; pickle files are refused.") from None
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{folder / WEIGHTS_NAME} is damaged: {error}.") from None
    if not tensors:
        raise AdapterError(f"The adapter in {folder} is empty.")
    return AdapterFile(folder, contents_of(tensors, config, folder), config, read_origin(folder), extras)


def contents_of(tensors: dict[str, Tensor], config: dict[str, Any], folder: Path) -> Contents:
    """What the tensors of a file mean; `folder` is for messages. Raises AdapterError as `read_adapter`."""
    if config.get("peft_type") != ADALORA_TYPE:
        return sort_tensors(tensors, config, str(folder))
    low_rank = {key: tensor for key, tensor in tensors.items() if ".lora_" in key}
    contents = sort_tensors({key: tensor for key, tensor in tensors.items() if key not in low_rank}, config,
                            str(folder))
    folded = adalora_file.fold(low_rank, config, folder)
    contents.pairs |= {module: LoraPair(*parts) for module, parts in folded.items()}
    return contents


def read_origin(folder: Path) -> dict[str, Any]:
    """What workbench.json says about the base and the data; empty for an adapter made elsewhere."""
    return read_object(folder / ORIGIN_NAME) if (folder / ORIGIN_NAME).exists() else {}
