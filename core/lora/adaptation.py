"""All methods of one run together: the table [adapter] and the optional tables beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.config import AdaLoraConfig, DoraConfig, FullConfig, LoraConfig, LowRankConfig, QLoraConfig, RunConfig
from core.errors import AdapterError
from core.events import Event
from core.extra_shapes import NOTHING_TO_TRAIN
from core.lora.adalora import AdaLora
from core.lora.adapter_file import write_origin
from core.lora.beside import Beside
from core.lora.bottleneck import Bottleneck
from core.lora.dora import Dora
from core.lora.full import Full
from core.lora.lora import Lora
from core.lora.method import Material, Method
from core.lora.prefix import Prefix
from core.lora.qlora import QLora


def methods_of(config: RunConfig) -> list[Method]:
    """The methods that a run asks for, in the order in which they are put on."""
    adapter = config.adapter
    methods: list[Method] = []
    if isinstance(adapter, LoraConfig):
        methods.append(Lora(adapter))
    elif isinstance(adapter, QLoraConfig):
        methods.append(QLora(adapter))
    elif isinstance(adapter, DoraConfig):
        methods.append(Dora(adapter))
    elif isinstance(adapter, AdaLoraConfig):
        methods.append(AdaLora(adapter))
    elif isinstance(adapter, FullConfig):
        methods.append(Full(adapter))
    if isinstance(adapter, LowRankConfig):
        methods.append(Beside(adapter))
    # behind the adapter of the layers: they take its layers as part of the model
    if config.prefix is not None:
        methods.append(Prefix(config.prefix, alone=not methods and config.bottleneck is None))
    if config.bottleneck is not None:
        methods.append(Bottleneck(config.bottleneck))
    return methods


class Adaptation:
    """The methods of one run on one model."""

    def __init__(self, config: RunConfig) -> None:
        self.methods = methods_of(config)

    def install(self, model: PreTrainedModel, material: Material) -> None:
        """Freeze `model` and put every method on it.

        Raises:
            AdapterError: what was asked for does not fit this model.
        """
        if not self.methods:
            raise AdapterError(NOTHING_TO_TRAIN, "Choose a method, or add the table [prefix] or [bottleneck].")
        if len(self.methods) > 1 and any(isinstance(method, Full) for method in self.methods):
            raise AdapterError("Full fine-tuning leaves a whole model, in which a prefix or bottleneck adapters have "
                               "no place.", "Leave them out, or choose another method.")
        model.requires_grad_(False)
        for method in self.methods:
            method.install(model, material)

    def parameters(self, model: PreTrainedModel) -> dict[str, nn.Parameter]:
        """Every trained parameter by its name in the model."""
        return {name: parameter for method in self.methods for group in method.groups(model)
                for name, parameter in group.parameters.items()}

    def optimizer_groups(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimizer; `rate` is the factor of the learning rate."""
        return [{"params": list(group.parameters.values()), "rate": group.rate}
                for method in self.methods for group in method.groups(model) if group.parameters]

    def begin(self, model: PreTrainedModel, step: int, total: int) -> Iterator[Event]:
        """Tell every method how many steps there will be. Raises AdapterError where one can not work with them."""
        for method in self.methods:
            yield from method.begin(model, step, total)

    def is_settled(self, step: int, total: int) -> bool:
        """True once every method has reached the form that was asked for."""
        return all(method.is_settled(step, total) for method in self.methods)

    def penalty(self, model: PreTrainedModel) -> Tensor | None:
        """The sum of the methods' penalties, or None."""
        found = [term for term in (method.penalty(model) for method in self.methods) if term is not None]
        return torch.stack(found).sum() if found else None

    def after_step(self, model: PreTrainedModel, step: int, total: int) -> Iterator[Event]:
        """Let every method do what it does after a step."""
        for method in self.methods:
            yield from method.after_step(model, step, total)

    def state(self) -> dict[str, Tensor]:
        """The methods' own state, their names before it."""
        return {f"{type(method).__name__}.{name}": tensor for method in self.methods
                for name, tensor in method.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for method in self.methods:
            prefix = f"{type(method).__name__}."
            method.load_state({name.removeprefix(prefix): tensor for name, tensor in state.items()
                               if name.startswith(prefix)})

    def write(self, folder: Path, model: PreTrainedModel, dtype: torch.dtype, base_name: str,
              origin: dict[str, Any]) -> None:
        """Write every method's files into `folder`, which exists; the caller makes it whole."""
        for method in self.methods:
            place = folder / method.folder
            place.mkdir(exist_ok=True)
            method.write(place, model, dtype, base_name, origin)
        write_origin(folder, origin)  # where all parts lie in sub-folders, the folder itself has none yet
