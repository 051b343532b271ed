"""An adapter on disk, in PEFT layout, both ways.

`adapter_config.json` says how, `adapter_model.safetensors` holds
`base_model.model.<module>.lora_A.weight` (r, in) and `.lora_B.weight` (out, r);
`workbench.json` beside them says which base the adapter was trained on.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core import files
from core.config import DoraConfig, PatternedConfig
from core.errors import AdapterError
from core.lora.inject import lora_layers, module_table
from core.lora.layers import LoraLayer
from core.lora.tensor_file import write_tensors
from core.targets import ADAPTABLE, alpha_of, matches_suffix

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
ORIGIN_NAME = "workbench.json"
_PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)")
_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST_CONFIG_BYTES = 4 * 2**20
# Fields of adapter_config.json that change the meaning of the weights, with the values that we can honour.
_MEANING: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none", None), "modules_to_save": (None, []),
    "lora_bias": (False, None), "trainable_token_indices": (None, [], {}), "target_parameters": (None, []),
    "layer_replication": (None, []), "megatron_config": (None,), "use_qalora": (False, None),
    "alora_invocation_tokens": (None, []), "arrow_config": (None,),
}


@dataclass(frozen=True)
class LoraPair:
    """The update of one module: `lora_a` (r, in), `lora_b` (out, r), alpha / r; for DoRA `magnitude` (out,)."""

    lora_a: Tensor
    lora_b: Tensor
    scale: float
    magnitude: Tensor | None = None

    def delta(self) -> Tensor:
        """scale B A as (out, in) in fp32."""
        return self.scale * (self.lora_b.float() @ self.lora_a.float())


@dataclass(frozen=True)
class AdapterFile:
    """A validated adapter: its pairs by module name, its config as read, and where it came from."""

    path: Path
    pairs: dict[str, LoraPair]
    config: dict[str, Any]
    origin: dict[str, Any] = field(default_factory=dict)


def adapter_tensors(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The adapter of `model` under PEFT's names, on the CPU."""
    tensors = {}
    for name, layer in lora_layers(model).items():
        for part, tensor in layer.peft_tensors().items():
            tensors[f"{_PREFIX}{name}.{part}"] = tensor.detach().to("cpu", dtype).contiguous()
    return tensors


def peft_config(model: nn.Module, adapter: PatternedConfig, base_name: str) -> dict[str, Any]:
    """adapter_config.json for the adapter of `model`; PEFT, vLLM and llama.cpp read it."""
    layers = lora_layers(model)
    alpha = int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha
    ranks = {name: layer.rank for name, layer in layers.items() if layer.rank != adapter.rank}
    alphas = {name: alpha_of(name, adapter) for name in layers if alpha_of(name, adapter) != adapter.alpha}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name,
        "r": adapter.rank, "lora_alpha": alpha, "lora_dropout": adapter.dropout,
        "target_modules": _target_names(model, layers), "bias": "none",
        "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in layers.values()),
        "init_lora_weights": True, "inference_mode": True, "use_rslora": adapter.rslora,
        "use_dora": isinstance(adapter, DoraConfig), "rank_pattern": ranks, "alpha_pattern": alphas,
        "modules_to_save": None, "layers_to_transform": None, "layers_pattern": None, "revision": None,
    }


def _target_names(model: nn.Module, layers: dict[str, LoraLayer]) -> list[str]:
    """Short names (q_proj) where they mean exactly the adapted modules, else full names."""
    kinds = sorted({name.rpartition(".")[2] for name in layers})
    able = [info.name for info in module_table(model) if info.type in ADAPTABLE]
    meant = {name for name in able if any(matches_suffix(name, kind) for kind in kinds)}
    return kinds if meant == set(layers) else sorted(layers)


def write_adapter(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], origin: dict[str, Any]) -> None:
    """Write the three files into `folder`, which exists; the caller makes the folder whole (files.atomic_folder)."""
    write_tensors(folder / WEIGHTS_NAME, tensors, {"format": "pt"})
    files.write_text(folder / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")
    files.write_text(folder / ORIGIN_NAME, json.dumps(origin, indent=2) + "\n")


def save_adapter(folder: Path, model: nn.Module, adapter: PatternedConfig, base_name: str,
                 origin: dict[str, Any] | None = None) -> None:
    """Write the adapter of `model` as a new folder, in `adapter.save_dtype`, whole or not at all."""
    with files.atomic_folder(folder) as temporary:
        write_adapter(temporary, adapter_tensors(model, _TORCH_DTYPES[adapter.save_dtype]),
                      peft_config(model, adapter, base_name), origin or {})


def copy_adapter(source: Path, folder: Path, save_dtype: str) -> None:
    """Write the adapter in `source` again as `folder`, in another number type; replaces an older one whole."""
    adapter = read_adapter(source)  # checks it
    tensors = {name: tensor.to(_TORCH_DTYPES[save_dtype])
               for name, tensor in load_file(source / WEIGHTS_NAME).items()}
    with files.replaced_folder(folder) as temporary:
        write_adapter(temporary, tensors, adapter.config, adapter.origin)


def read_adapter(folder: Path) -> AdapterFile:
    """Read and check an adapter folder in PEFT layout.

    Raises:
        AdapterError: files missing or damaged, a field that we can not honour, half a pair,
            shapes that do not fit, or numbers that are not finite.
    """
    config = _read_json(folder / CONFIG_NAME)
    for name, allowed in _MEANING.items():
        if config.get(name, allowed[0]) not in allowed:
            raise AdapterError(f"The adapter in {folder} uses {name} = {config[name]!r}, which is not supported.",
                               "It would be read wrongly, so it is not read at all.")
    try:
        tensors = load_file(folder / WEIGHTS_NAME)
    except FileNotFoundError:
        raise AdapterError(f"{folder} has no {WEIGHTS_NAME}.",
                           "Adapters are read from safetensors only; pickle files are refused.") from None
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{folder / WEIGHTS_NAME} is damaged: {error}.") from None
    return AdapterFile(folder, _pairs(tensors, config, folder), config, read_origin(folder))


def read_origin(folder: Path) -> dict[str, Any]:
    """What workbench.json says about the base and the data; empty for an adapter made elsewhere."""
    return _read_json(folder / ORIGIN_NAME) if (folder / ORIGIN_NAME).exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_CONFIG_BYTES:
            raise AdapterError(f"{path} is far too large for a configuration.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path.parent} is not an adapter: it has no {path.name}.") from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{path} does not hold a JSON object.")
    return values


def _pairs(tensors: dict[str, Tensor], config: dict[str, Any], folder: Path) -> dict[str, LoraPair]:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterError(f"The adapter in {folder} holds {key}, which is not a LoRA matrix of a linear layer.",
                               "It was made by another method or another program.")
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"The adapter in {folder} holds numbers that are not finite in {key}.")
        sides.setdefault(match["module"], {})[match["part"]] = tensor
    if not sides:
        raise AdapterError(f"The adapter in {folder} is empty.")
    return {module: _pair(module, found, config, folder) for module, found in sides.items()}


def _pair(module: str, found: dict[str, Tensor], config: dict[str, Any], folder: Path) -> LoraPair:
    wanted = {"lora_A.weight", "lora_B.weight"} | ({"lora_magnitude_vector"} if config.get("use_dora") else set())
    if set(found) != wanted:
        raise AdapterError(f"The adapter in {folder} holds only half of {module}.", "The file is incomplete.")
    lora_a, lora_b = found["lora_A.weight"], found["lora_B.weight"]
    rank = int(_pattern_value(config.get("rank_pattern"), module, config.get("r", 0)))
    if lora_a.ndim != 2 or lora_b.ndim != 2 or not lora_a.shape[0] == lora_b.shape[1] == rank:
        raise AdapterError(f"The adapter in {folder} says rank {rank} for {module} but holds "
                           f"A {tuple(lora_a.shape)} and B {tuple(lora_b.shape)}.")
    alpha = float(_pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha", 0)))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise AdapterError(f"The adapter in {folder} has an alpha that is not finite.")
    magnitude = found.get("lora_magnitude_vector")
    if magnitude is not None and magnitude.shape != lora_b.shape[:1]:
        raise AdapterError(f"The adapter in {folder} has a magnitude of {tuple(magnitude.shape)} for {module}, which "
                           f"has {lora_b.shape[0]} outputs.")
    return LoraPair(lora_a, lora_b, scale, magnitude)


def _pattern_value(pattern: Any, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of the name wins. Keys are taken as plain suffixes
    where they are names, so that a foreign file brings no regular expression that runs for ever."""
    for key, value in (pattern or {}).items():
        plain = str(key).lstrip("^").replace("\\.", ".")
        if re.fullmatch(r"[\w.]+", plain) is None:
            raise AdapterError(f"The adapter has a pattern that is not a module name: {key!r}.")
        if matches_suffix(module, plain):
            return value
    return default
