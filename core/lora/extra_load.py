"""The prefix and the bottleneck adapters from the disk, made ready for a model."""

from torch import nn
from transformers import PreTrainedModel

from core.errors import AdapterError
from core.lora.bottleneck import fitted_bottleneck
from core.lora.extra import ModelExtra
from core.lora.extra_files import Extras, extra_misfit
from core.lora.inject import module_table
from core.lora.prefix import fitted_prefix


def fitted_extras(extras: Extras, model: nn.Module) -> list[ModelExtra]:
    """What is to `hang` on `model`; the model is not changed yet.

    Raises:
        AdapterError: a part belongs to a model of another shape.
    """
    if not extras.words:
        return []
    assert isinstance(model, PreTrainedModel)
    misfit = extra_misfit(extras, module_table(model))
    if misfit:
        raise AdapterError(f"The adapter does not fit this model: {misfit}.",
                           "Choose the base model that the adapter was trained on.")
    ready: list[ModelExtra] = []
    if extras.prefix is not None:
        ready.append(fitted_prefix(model, extras.prefix))
    if extras.bottleneck is not None:
        ready += fitted_bottleneck(model, extras.bottleneck)
    return ready
