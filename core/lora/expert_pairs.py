"""The pairs of experts among those of an adapter: one for each expert, "….experts.down_proj.3"."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from core.errors import AdapterError
from core.expert_names import expert_name, parameter_of
from core.lora.experts import remove_experts, wrap_expert
from core.lora.peft_keys import LoraPair
from core.records import ModuleInfo


def split_pairs(pairs: Mapping[str, LoraPair]) -> tuple[dict[str, LoraPair], dict[str, list[LoraPair]]]:
    """The pairs of modules, and those of experts together by their parameter, in order.

    Raises:
        AdapterError: some of a parameter's experts are missing, or they differ in rank or scale.
    """
    modules: dict[str, LoraPair] = {}
    experts: dict[str, dict[int, LoraPair]] = {}
    for name, pair in pairs.items():
        parameter = parameter_of(name)
        if parameter is None:
            modules[name] = pair
        else:
            experts.setdefault(parameter, {})[int(name.rpartition(".")[2])] = pair
    for parameter, found in experts.items():
        forms = {(pair.lora_a.shape, pair.lora_b.shape, pair.scale) for pair in found.values()}
        if sorted(found) != list(range(len(found))) or len(forms) != 1:
            raise AdapterError(f"The experts of {parameter} do not have updates of one form each.")
    return modules, {parameter: [found[number] for number in range(len(found))]
                     for parameter, found in experts.items()}


def stacked(pairs: Sequence[LoraPair]) -> tuple[Tensor, Tensor]:
    """A (experts, r, in) and B (experts, out, r) of a parameter's pairs."""
    return torch.stack([pair.lora_a for pair in pairs]), torch.stack([pair.lora_b for pair in pairs])


def names_of(info: ModuleInfo) -> list[str]:
    """The names of the pairs that a listed module may have: its own, or one for every expert."""
    return [expert_name(info.name, number) for number in range(info.experts)] if info.experts else [info.name]


@torch.no_grad()
def put_on_experts(model: nn.Module, experts: Mapping[str, Sequence[LoraPair]]) -> None:
    """Put the updates of every parameter's experts on `model`.

    Raises:
        AdapterError: the experts of this model are computed in a way that is not known here.
    """
    try:
        for name, pairs in experts.items():
            rank = pairs[0].lora_a.shape[0]
            matrix = wrap_expert(model, name, rank, pairs[0].scale * rank)
            matrix.scale = pairs[0].scale
            # a skeleton without weights gets its adapter in memory all the same
            device = torch.device("cpu") if matrix.lora_a.is_meta else matrix.lora_a.device
            lora_a, lora_b = (tensor.to(device, matrix.lora_a.dtype, copy=True) for tensor in stacked(pairs))
            matrix.lora_a, matrix.lora_b = nn.Parameter(lora_a), nn.Parameter(lora_b)
            matrix.eval()
    except AdapterError:
        remove_experts(model)
        raise
