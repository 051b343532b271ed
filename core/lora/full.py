"""Full fine-tuning, the yardstick: the chosen modules' own numbers are trained, in fp32.

Nothing is added to the model. A checkpoint holds the trained numbers by their names; what a run leaves
is a whole model in Hugging Face layout, in its folder `model`.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from core import files
from core.config import FullConfig
from core.errors import AdapterError
from core.lora.adapter_file import ORIGIN_NAME
from core.lora.inject import module_table
from core.lora.method import Material, Method, ParameterGroup
from core.targets import select_targets

METHOD_KEY = "method"  # in workbench.json
METHOD = "full"
VALUE = ".value"  # the end of the name of a trained number's tensor in a checkpoint


class Full(Method):
    """Every number of the chosen modules is trained; the rest of the model is frozen."""

    def __init__(self, adapter: FullConfig) -> None:
        self.adapter = adapter
        self._names: list[str] = []

    def install(self, model: PreTrainedModel, material: Material) -> None:
        """Unfreeze the chosen modules.

        Raises:
            AdapterError: the targets match nothing, or the weights are not held in fp32.
        """
        for module in select_targets(module_table(model), self.adapter):
            own = [model.get_parameter(module.name)] if module.experts else \
                model.get_submodule(module.name).parameters(recurse=False)
            for parameter in own:
                if parameter.dtype != torch.float32:
                    raise AdapterError(f"{module.name} is held in {str(parameter.dtype).removeprefix('torch.')}; "
                                       "full fine-tuning trains in fp32.", "Set the number type to auto or fp32.")
                parameter.requires_grad_(True)
        # a shared tensor has one name here and is trained once
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def groups(self, model: PreTrainedModel) -> list[ParameterGroup]:
        """All trained parameters at one rate."""
        parameters = dict(model.named_parameters())
        return [ParameterGroup({name: parameters[name] for name in self._names})]

    def write(self, folder: Path, model: PreTrainedModel, dtype: torch.dtype, base_name: str,
              origin: dict[str, Any]) -> None:
        """workbench.json alone: a checkpoint holds the numbers themselves; a whole model is written at the end."""
        files.write_text(folder / ORIGIN_NAME, json.dumps({**origin, METHOD_KEY: METHOD}, indent=2) + "\n")


def is_full(origin: dict[str, Any]) -> bool:
    """True where this workbench.json belongs to full fine-tuning."""
    return origin.get(METHOD_KEY) == METHOD


def load_values(file: Path, model: nn.Module) -> None:
    """Put the trained numbers of a checkpoint's `file` into `model`; nothing is changed unless all of them fit.

    Raises:
        AdapterError: damaged, numbers that are not finite, or parameters that the model lacks or has in another shape.
    """
    parameters = dict(model.named_parameters())
    names = _value_names(file)
    if not names:
        raise AdapterError(f"{file} holds no trained numbers.", "Choose another checkpoint.")
    for name in names:  # all are looked at before one is changed; each is read twice, so that one at a time is held
        tensor = _value(file, name)
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise AdapterError(f"{file.parent.name} does not fit this model: it has no {name} of "
                               f"{tuple(tensor.shape)}.", "Choose the base model that was trained.")
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{file.parent.name} holds numbers that are not finite in {name}.",
                               "Choose another checkpoint.")
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(_value(file, name))


def _value_names(file: Path) -> list[str]:
    with _opened(file) as tensors:
        return [key.removesuffix(VALUE) for key in tensors.keys() if key.endswith(VALUE)]  # noqa: SIM118


def _value(file: Path, name: str) -> Tensor:
    """One trained number's tensor. The file is closed again: what was read of a mapped file counts as memory."""
    with _opened(file) as tensors:
        return tensors.get_tensor(f"{name}{VALUE}")


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file} can not be read: {error}.", "Choose another checkpoint.") from error
