"""Which tensor of the checkpoint is which parameter of the model.

transformers may load `h.0.attn.c_attn.weight` into `transformer.h.0.attn.c_attn.weight`, or rename
keys of older layouts. The same rules are followed here, on a model without weights.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming
from transformers.pytorch_utils import Conv1D

from core.errors import ModelError
from core.lora.experts import expert_parameters
from core.models.load import allow_fp64, attention_implementation, load_config


@dataclass(frozen=True)
class ExpertMap:
    """What a tensor (out, in) of the checkpoint is in a parameter (experts, out, in): the rows from `start` on of the
    map of one expert."""

    parameter: str
    expert: int
    start: int


@dataclass(frozen=True)
class ModelKeys:
    """The model's parameters and where each comes from.

    parameter_of: checkpoint key -> parameter name, for tensors that are loaded as they are.
    converted: checkpoint key -> parameter, for those put together from several tensors or split from one.
    tied: parameter -> the parameter whose tensor it shares.
    transposed: parameters stored as (in, out); an embedding is one.
    shapes: parameter -> shape.
    experts: checkpoint key -> its place, for those of `converted` that hold a linear map of one expert.
    vocabulary: the weights of the input embedding and of the output head, which have one row for each token.
    """

    parameter_of: dict[str, str]
    converted: dict[str, str]
    tied: dict[str, str]
    transposed: frozenset[str]
    shapes: dict[str, tuple[int, ...]]
    vocabulary: frozenset[str] = frozenset()
    experts: dict[str, ExpertMap] = field(default_factory=dict)

    def tied_group(self, parameter: str) -> set[str]:
        """`parameter` and all that share its tensor."""
        root = self.tied.get(parameter, parameter)
        return {root, parameter} | {name for name, source in self.tied.items() if source == root}


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Inside, new modules get parameters without storage but real buffers (masks, rotary tables)."""
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def skeleton(folder: Path) -> PreTrainedModel:
    """The model of `folder` in fp32 with parameters on the meta device and real buffers.

    Raises:
        ModelError: transformers can not build a causal language model from its config.
    """
    config = load_config(folder)
    model_class = cast("type[PreTrainedModel]", MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    try:
        with parameters_on_meta():
            model = model_class._from_config(config, dtype=torch.float32,
                                             attn_implementation=attention_implementation(config))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"The model in {folder} can not be built from its config.json.",
                         "Fetch the model again.") from error
    allow_fp64(model)
    return model.eval()


def match_keys(model: PreTrainedModel, keys: Iterable[str]) -> ModelKeys:
    """Follow the rules by which transformers loads `keys` into `model`.

    Args:
        model: the model, with or without weights.
        keys: names of tensors in the checkpoint.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    transforms = get_model_conversion_mapping(model)
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    parameter_of: dict[str, str] = {}
    converted: dict[str, str] = {}
    experts: dict[str, ExpertMap] = {}
    for key in keys:
        renamed = key
        for renaming in renamings:
            renamed, _ = renaming.rename_source_key(renamed)
        converter = next((item for item in converters if item.rename_source_key(renamed)[1] is not None), None)
        if converter is not None:
            target = _with_prefix(converter.rename_source_key(renamed)[0], model.base_model_prefix, shapes)
            if target in shapes:
                converted[key] = target
                place = _expert_map(renamed, converter, target, shapes[target])
                if place is not None:
                    experts[key] = place
                continue
        for candidate in (renamed, key):
            name = _with_prefix(candidate, model.base_model_prefix, shapes)
            if name in shapes:
                parameter_of[key] = name
                break
    return ModelKeys(parameter_of, converted, dict(model.all_tied_weights_keys),
                     _transposed(model), shapes, _vocabulary(model), experts)


def _expert_map(key: str, converter: WeightConverter, parameter: str, shape: tuple[int, ...]) -> ExpertMap | None:
    """Where `key` goes, if the rule is: stack the experts, then put maps of the same size below each other."""
    patterns = converter.source_patterns
    steps = [(type(step), getattr(step, "dim", None)) for step in converter.operations]
    known = [(MergeModulelist, 0)] if len(patterns) == 1 else [(MergeModulelist, 0), (Concatenate, 1)]
    if steps != known or len(shape) != 3 or shape[1] % len(patterns):
        return None
    for number, pattern in enumerate(patterns):
        found = re.search(re.escape(pattern).replace(r"\*", r"(\d+)"), key)
        if found is not None and found.groups():
            return ExpertMap(parameter, int(found.group(1)), number * (shape[1] // len(patterns)))
    return None


def _with_prefix(key: str, prefix: str, names: dict[str, tuple[int, ...]]) -> str:
    """`key`, with the base model's prefix added or taken away where only that is a parameter."""
    without = key.removeprefix(f"{prefix}.")
    for candidate in (key, without, f"{prefix}.{key}"):
        if candidate in names:
            return candidate
    return key


def _transposed(model: nn.Module) -> frozenset[str]:
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D | nn.Embedding)}
    return frozenset(names | {f"{name}.{parameter}" for name, module in model.named_modules()
                              for parameter in expert_parameters(module) if getattr(module, "is_transposed", False)})


def _vocabulary(model: PreTrainedModel) -> frozenset[str]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return frozenset(f"{name}.weight" for name, module in model.named_modules()
                     if any(module is end for end in ends))
