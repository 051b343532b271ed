"""A checked model folder becomes a frozen model and a tokenizer. Nothing here runs foreign code."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from core.errors import ModelError
from core.models.device import machine_facts, resolve_device, resolve_dtype, use_physical_cores
from core.models.quantise import Quantisation, loading_config, take_over
from core.models.safety import check_model_folder, read_config

__all__ = ["load_config", "load_model", "load_tokenizer", "machine_facts", "resolve_device", "resolve_dtype"]

# Keys that could make transformers fetch or choose other code than its own.
_DROPPED_KEYS = frozenset({"auto_map", "_name_or_path", "attn_implementation", "_attn_implementation",
                           "experts_implementation", "_experts_implementation"})


def load_config(path: Path) -> PretrainedConfig:
    """The model's config as the class that transformers itself has for its `model_type`.

    Raises:
        ModelError: unreadable, or of a type that transformers does not know as a language model.
    """
    values = read_config(path)
    if values["model_type"] not in CONFIG_MAPPING:
        raise ModelError(f"The model in {path} is of the kind {values['model_type'][:60]!r}, which is not known here.",
                         "A newer version of the transformers library may know it.")
    config_class = CONFIG_MAPPING[values["model_type"]]
    try:
        config = config_class.from_dict({key: value for key, value in values.items() if key not in _DROPPED_KEYS})
    except Exception as error:
        # each family's config checks itself, with errors of any kind
        raise ModelError(f"The config.json of the model in {path} can not be used: {one_line(error)}.") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"The model in {path} ({config.model_type}) is not a text-generating language model.",
                         "Choose a model that continues text, such as Llama, Qwen, Mistral or GPT-2.")
    return config


def attention_implementation(config: PretrainedConfig) -> str:
    """"sdpa" where the model computes the same with it, else "eager" (Gemma 2 caps its scores)."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) and not capped else "eager"


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with its chat template where it has one.

    Raises:
        ModelError: missing or damaged tokenizer files.
    """
    _quiet()
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RecursionError) as error:
        raise ModelError(f"The tokenizer in {path} can not be read: {one_line(error)}.",
                         "Fetch the model again, with all of its tokenizer files.") from error
    except Exception as error:
        # the tokenizers library raises bare Exception for a damaged tokenizer.json
        if type(error) is Exception:
            raise ModelError(f"The tokenizer in {path} is damaged: {one_line(error)}.",
                             "Fetch the model again, with all of its tokenizer files.") from error
        raise


def load_model(path: Path, device: torch.device, dtype: torch.dtype,
               quantisation: Quantisation | None = None) -> PreTrainedModel:
    """The model of a folder, every parameter frozen, in eval mode.

    Args:
        path: folder in Hugging Face layout; it is checked first.
        device: where the weights go.
        dtype: of all weights that are not quantised.
        quantisation: hold the linear layers below the head in 4 or 8 bits; each is quantised as it is read.

    Raises:
        ModelError: unsafe, damaged, weights that are missing or do not fit the config, or bitsandbytes is
            needed and missing.
    """
    check_model_folder(path)
    config = load_config(path)
    _quiet()
    if device.type == "cpu":
        use_physical_cores()
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    extra = {} if quantisation is None else {"quantization_config": loading_config(quantisation)}
    try:
        model, loading = model_class.from_pretrained(
            path, config=config, dtype=dtype, attn_implementation=attention_implementation(config),
            use_safetensors=True, local_files_only=True, output_loading_info=True,
            device_map=None if device.type == "cpu" and quantisation is None else {"": device}, **extra,
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        if "out of memory" in str(error).lower():
            raise
        raise ModelError(f"The weights in {path} do not fit its config.json: {one_line(error)}.",
                         "Fetch the model again.") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(f"The model in {path} lacks {len(missing)} of its weights, the first is {missing[0]}.",
                         "Fetch the model again, with all of its safetensors files.")
    if quantisation is not None:
        model = take_over(model, quantisation.computed_in)
    if dtype == torch.float64:
        allow_fp64(model)
    return model.requires_grad_(False).eval()


def allow_fp64(model: PreTrainedModel) -> None:
    """Let the experts of a mixture compute one after the other: their joint product knows no fp64."""
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")


def _quiet() -> None:
    """Progress reaches the person as events, not as bars on a terminal that may not exist."""
    transformers_logging.disable_progress_bar()


def one_line(error: BaseException) -> str:
    """What a library says of an error, as a part of one sentence."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".: ")
