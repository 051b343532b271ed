"""Parameters that are trained whole beside the low-rank updates: biases, norms, an output head.

The trained value lies beside the frozen one, in fp32 whatever the base is held in, and takes its place
wherever the model reads it. So the base can be had back at any time, and a head that shares the
embedding's tensor parts from it without changing it.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.lora.method import AdapterModule


class WholeParameter(AdapterModule):
    """Stands in the place of one frozen parameter, or of several that share their tensor.

    Args:
        value: what is used instead; for an embedding it may have more rows than the frozen one.
        trained: False for a value that is only read.
    """

    def __init__(self, value: Tensor, trained: bool = True) -> None:
        super().__init__()
        self.value = nn.Parameter(value.detach().float().clone(), requires_grad=trained)
        self.enabled = True

    def forward(self, original: Tensor) -> Tensor:
        """The trained value in the number type of `original`, or `original` while switched off."""
        return self.value.to(original.dtype) if self.enabled else original


def put_whole(model: nn.Module, name: str, whole: WholeParameter) -> None:
    """Let `whole` stand in the place of the parameter called `name`."""
    module, _, parameter = name.rpartition(".")
    parametrize.register_parametrization(unwrapped(model.get_submodule(module)), parameter, whole, unsafe=True)


def whole_parameters(model: nn.Module) -> dict[str, WholeParameter]:
    """Every parameter that is replaced, by its name in the base model; shared ones occur under each name."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter, whole in _parametrizations(module):
            found[f"{base_name(name)}.{parameter}"] = whole
    return found


def take_out_whole(model: nn.Module) -> None:
    """Put every frozen parameter back in its place."""
    for module in list(model.modules()):
        for parameter, _ in _parametrizations(module):
            parametrize.remove_parametrizations(module, parameter, leave_parametrized=False)


def base_name(name: str) -> str:
    """The name that a module has in the base model, without the wrappers around it."""
    return ".".join(part for part in name.split(".") if part != "base")


def _parametrizations(module: nn.Module) -> Iterator[tuple[str, WholeParameter]]:
    if not parametrize.is_parametrized(module):
        return
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    for parameter, steps in list(parametrizations.items()):
        assert isinstance(steps, parametrize.ParametrizationList)
        for step in steps:
            if isinstance(step, WholeParameter):
                yield parameter, step


def frozen_value(module: nn.Module, parameter: str = "weight") -> Tensor:
    """The base's own value of a parameter, replaced or not."""
    if parametrize.is_parametrized(module, parameter):
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        original = parametrizations[parameter].original
        assert isinstance(original, Tensor)
        return original
    value = getattr(module, parameter)
    assert isinstance(value, Tensor)
    return value


def unwrapped(module: nn.Module) -> nn.Module:
    """The base's own module, whatever adapters are around it."""
    while isinstance(module, AdapterModule) and isinstance(module.base, nn.Module):
        module = module.base
    return module


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The base's parameters of `module` itself, replaced ones as they were."""
    own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    for parameter, _ in _parametrizations(module):
        own[parameter] = nn.Parameter(frozen_value(module, parameter), requires_grad=False)
    return own


def trained_parameters(wholes: dict[str, WholeParameter]) -> dict[str, nn.Parameter]:
    """The trained values by name, each once."""
    seen: set[int] = set()
    found = {}
    for name, whole in wholes.items():
        if id(whole) not in seen and whole.value.requires_grad:
            seen.add(id(whole))
            found[name] = whole.value
    return found
