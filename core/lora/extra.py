"""What hangs on a model by a hook, beside its layers: the prefix and the bottleneck adapters."""

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.utils.hooks import RemovableHandle

from core.lora.method import AdapterModule


class ModelExtra(AdapterModule):
    """An added module that takes part through a hook and not in the place of a layer.

    It is a child, called `child_name`, of the module `place` of the model, so that its parameters are the model's.
    """

    child_name = ""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.place = ""
        self._model: tuple[nn.Module, ...] = ()  # in a tuple: as an attribute it would be a part of this module
        self._handle: RemovableHandle | None = None

    def hook_on(self, module: nn.Module) -> RemovableHandle:
        """Register the hook by which this takes part; `module` is the one at `place`."""
        raise NotImplementedError

    def meant_for(self, model: nn.Module, place: str = "") -> None:
        """`hang` will put it on the module `place` of `model`, "" for the model itself."""
        self.place, self._model = place, (model,)

    def hang(self) -> None:
        """Take part in the model that it is meant for."""
        module = self._model[0].get_submodule(self.place)
        device = next(module.parameters()).device
        if device.type != "meta":  # a skeleton, whose weights come when they are needed, as this one's are there
            self.to(device)
        self._handle = self.hook_on(module)
        module.add_module(self.child_name, self)

    @property
    def hangs(self) -> bool:
        """True from `hang` to `take_out`."""
        return self._handle is not None

    def take_out(self) -> None:
        """Take no part any more; the model is as before."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            delattr(self._model[0].get_submodule(self.place), self.child_name)


def extras(model: nn.Module) -> list[ModelExtra]:
    """All of them in `model`."""
    return [module for module in model.modules() if isinstance(module, ModelExtra)]


def take_out_extras(model: nn.Module) -> None:
    """Take all of them off; the model is as before."""
    for extra in extras(model):
        extra.take_out()


@contextlib.contextmanager
def extras_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, they take no part."""
    found = [extra for extra in extras(model) if extra.enabled]
    try:
        for extra in found:
            extra.enabled = False
        yield
    finally:
        for extra in found:
            extra.enabled = True
