"""What a method of adaptation has to say: how it is put on, trained, and written.

Each method is one file of this room. The training loop knows only this class, so a new method is a
new file, its table in `core.config`, and one line in `core.lora.adaptation`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.events import Event


class AdapterModule(nn.Module):
    """A module that a method adds to the model.

    In training only these are in training mode (their own dropout is on); the frozen base around and
    inside of them computes as it will when it is used.
    """


@dataclass(frozen=True)
class ParameterGroup:
    """Trained parameters by name, and the factor of their learning rate."""

    parameters: dict[str, nn.Parameter]
    rate: float = 1.0


@dataclass(frozen=True)
class Material:
    """What a method may look at when it is put on: prepared training rows, the seed, and the tokenizer.

    `added_tokens` are those of the tokenizer that the model does not know.
    `check` raises Cancelled where the run was told to stop; a method that needs long calls it now and then.
    """

    rows: Sequence[Any]  # core.data.template.EncodedRow; this room does not import that one
    seed: int
    tokenizer: PreTrainedTokenizerBase | None = None
    added_tokens: frozenset[str] = frozenset()
    check: Callable[[], None] = lambda: None


class Method(ABC):
    """One way of adapting a model. An object of it belongs to one model."""

    folder: str = ""  # sub-folder of the adapter's folder; "" is the folder itself

    @abstractmethod
    def install(self, model: PreTrainedModel, material: Material) -> None:
        """Put the trained parameters into the frozen `model` and mark them with requires_grad.

        Raises:
            AdapterError: what was asked for does not fit this model.
        """

    @abstractmethod
    def groups(self, model: PreTrainedModel) -> list[ParameterGroup]:
        """The parameters that this method trains, by their names in the model."""

    @abstractmethod
    def write(self, folder: Path, model: PreTrainedModel, dtype: torch.dtype, base_name: str,
              origin: dict[str, Any]) -> None:
        """Write the files that others read into `folder`, which exists; the caller makes it whole."""

    def begin(self, model: PreTrainedModel, step: int, total: int) -> Iterator[Event]:
        """Called once before training, with the steps done so far (0, or more in a resumed run) and all there will be.

        Raises:
            AdapterError: the method can not do its work in so many steps.
        """
        yield from ()

    def is_settled(self, step: int, total: int) -> bool:
        """True once what is trained has the form asked for; only then can it be the best of a run."""
        return True

    def penalty(self, model: PreTrainedModel) -> Tensor | None:
        """A term that is added to the loss of every step, or None."""
        return None

    def after_step(self, model: PreTrainedModel, step: int, total: int) -> Iterator[Event]:
        """Called after the optimizer's step `step` (from 1) of `total`, while the gradients are still there."""
        yield from ()

    def state(self) -> dict[str, Tensor]:
        """What else a checkpoint must hold to go on as if nothing had happened."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        assert not state, "a method with a state must take it back"


def train_mode(model: nn.Module) -> None:
    """Training mode for the added modules alone."""
    model.eval()
    for module in model.modules():
        if isinstance(module, AdapterModule):
            module.training = True
