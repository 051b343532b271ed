"""Whole parameters and token rows from an adapter file, made ready for a model."""

from typing import Any

import torch
from torch import Tensor, nn

from core.lora.extra import ModelExtra
from core.lora.inject import module_table
from core.lora.peft_keys import Contents, TokenRows
from core.lora.token_rows import TokenEmbedding, TokenHead, put_rows, take_out_rows, token_modules
from core.lora.whole import WholeParameter, frozen_value, put_whole, take_out_whole, unwrapped
from core.records import ModuleInfo


class BesideLayers(ModelExtra):
    """Stands in the place of parameters and rows of a model as long as it hangs on it."""

    child_name = "beside_layers"

    def __init__(self, model: nn.Module, wholes: dict[str, WholeParameter], rows: dict[str, TokenRows]) -> None:
        super().__init__()
        self._wholes = (wholes,)  # in a tuple: they are parts of the model's own modules
        self._rows = rows
        self._hung = False
        # looked for now: other adapters may stand in their places when this one hangs
        self._head = next((info for info in module_table(model) if info.is_output_head), None)
        self.meant_for(model)

    def hang(self) -> None:
        """Put everything in its place."""
        model = self._model[0]
        for name, whole in self._wholes[0].items():
            whole.to(frozen_value(unwrapped(model.get_submodule(name.rpartition(".")[0]))).device)
            put_whole(model, name, whole)
        self._hang_rows(model)
        model.add_module(self.child_name, self)
        self._hung = True
        self.enabled = True

    def _hang_rows(self, model: nn.Module) -> None:
        head = self._head
        for name, rows in self._rows.items():
            base = model.get_submodule(name)
            if head is not None and name == head.name:
                put_rows(model, name, TokenHead(base, rows.indices, rows.values))
                continue
            embedding = TokenEmbedding(base, rows.indices, rows.values)
            put_rows(model, name, embedding)
            if head is not None and head.tied_to == name and head.name not in self._rows:
                put_rows(model, head.name, TokenHead(model.get_submodule(head.name), rows.indices, None, embedding))
        for module in token_modules(model).values():
            module.requires_grad_(False)

    @property
    def hangs(self) -> bool:
        """True from `hang` to `take_out`."""
        return self._hung

    def take_out(self) -> None:
        """Put the base's own tensors back."""
        if self._hung:
            model = self._model[0]
            take_out_rows(model)
            take_out_whole(model)
            delattr(model, self.child_name)
            self._hung = False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "enabled" and getattr(self, "_hung", False):
            for part in [*self._wholes[0].values(), *token_modules(self._model[0]).values()]:
                part.enabled = bool(value)


def fitted_beside(contents: Contents, model: nn.Module) -> BesideLayers | None:
    """What is to `hang` on `model`, which is not changed yet; None where the adapter has nothing of the kind.

    Args:
        contents: of an adapter that fits the model (see `core.lora.fit`).
        model: the bare base.
    """
    table = {info.name: info for info in module_table(model)}
    wholes = {name: WholeParameter(value, trained=False) for name, value in contents.parameters.items()}
    for name, value in contents.frozen.items():
        if not is_the_base(name, value, model):
            whole = WholeParameter(value, trained=False)
            for shared in _sharing(name, table):
                wholes.setdefault(shared, whole)
    return BesideLayers(model, wholes, contents.rows) if wholes or contents.rows else None


def is_the_base(name: str, value: Tensor, model: nn.Module) -> bool:
    """PEFT writes the base's embedding beside an adapter of it."""
    module, _, parameter = name.rpartition(".")
    own = frozen_value(unwrapped(model.get_submodule(module)), parameter)
    return own.shape == value.shape and torch.equal(own.cpu(), value.to(own.dtype))


def _sharing(name: str, table: dict[str, ModuleInfo]) -> list[str]:
    """`name` and the parameters that share its tensor in the base."""
    module, _, parameter = name.rpartition(".")
    root = table[module].tied_to or module
    return [f"{info.name}.{parameter}" for info in table.values() if root in (info.name, info.tied_to)]
