"""A model in memory becomes a folder in Hugging Face layout, as its base's was."""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from core import files
from core.errors import ModelError
from core.lora.tensor_file import write_tensors
from core.models.companions import copy_companions, write_model_config
from core.models.device import DTYPES
from core.models.safety import WEIGHTS, WEIGHTS_INDEX

SHARD_BYTES = 5 * 10**9


def save_model(model: PreTrainedModel, base: Path, folder: Path, dtype: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `model` into `folder`, which exists; the caller makes it whole.

    One shard after the other is brought to the CPU and into its number type. Tokenizer, chat template and
    config are those of `base`.

    Args:
        model: without adapters.
        base: the folder it was loaded from.
        folder: an empty folder.
        dtype: of the files: "fp32", "bf16" or "fp16".
        shard_bytes: a new file begins before one would grow larger.

    Raises:
        ModelError: a number that is not finite, or does not fit the number type.
    """
    tensors = stored_tensors(model)
    kept = {name: _kept_dtype(tensor, DTYPES[dtype]) for name, tensor in tensors.items()}
    shards = _shards({name: tensor.numel() * kept[name].itemsize for name, tensor in tensors.items()}, shard_bytes)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, {name: _converted(name, tensors[name], kept[name]) for name in names},
                      {"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(tensor.numel() * kept[name].itemsize for name, tensor in tensors.items())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        files.write_text(folder / WEIGHTS_INDEX, json.dumps(index, indent=2) + "\n")
    copy_companions(base, folder)
    write_model_config(base, folder, dtype, untied=False)


def stored_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model's files by their names there: a shared one once, in the layout that is loaded."""
    state = {name: tensor for name, tensor in model.state_dict().items()
             if name not in (model._keys_to_ignore_on_save or ())}
    return dict(sorted(revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model)).items()))


def _kept_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    converted = tensor.detach().to("cpu", dtype).contiguous()
    if converted.is_floating_point() and not torch.isfinite(converted).all():
        raise ModelError(f"{name} holds numbers that are not finite, or too large for the number type; the model was "
                         "not written.", "Save it as fp32.")
    return converted


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in files of at most `limit` bytes, in their order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
