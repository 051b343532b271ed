"""Updates of experts in an adapter file, as PEFT 0.21 lays them out for `target_parameters`.

A parameter (experts, out, in) has `lora_A.weight` (r experts, in), the experts one below the other, and
`lora_B.weight` (out, r experts), the experts side by side for every r. PEFT wraps the module once for each
parameter, the later one outside: with both, `….experts.lora_A.weight` is of `down_proj` and
`….experts.base_layer.lora_A.weight` of `gate_up_proj`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.errors import AdapterError

BASE_LAYER = ".base_layer"
ORDER = ("gate_up_proj", "up_proj", "down_proj")  # as transformers registers them


def written_module(name: str, adapted: Iterable[str]) -> str:
    """Below which module the file holds the update of the parameter `name`, given all adapted parameters."""
    module, _, parameter = name.rpartition(".")
    outside = [other for other in ORDER[ORDER.index(parameter) + 1:] if f"{module}.{other}" in set(adapted)]
    return module + BASE_LAYER * len(outside)


def to_file(lora_a: Tensor, lora_b: Tensor) -> dict[str, Tensor]:
    """A (experts, r, in) and B (experts, out, r) by PEFT's names, two-dimensional."""
    return {"lora_A.weight": lora_a.reshape(-1, lora_a.shape[2]),
            "lora_B.weight": lora_b.permute(1, 2, 0).reshape(lora_b.shape[1], -1)}


def from_file(lora_a: Tensor, lora_b: Tensor, rank: int) -> tuple[Tensor, Tensor] | None:
    """The inverse of `to_file`; None where the shapes are not those of experts of this rank."""
    if lora_a.ndim != 2 or lora_b.ndim != 2 or rank < 1 or lora_a.shape[0] % rank \
            or lora_a.shape[0] != lora_b.shape[1]:
        return None
    experts = lora_a.shape[0] // rank
    return (lora_a.reshape(experts, rank, -1),
            lora_b.reshape(lora_b.shape[0], rank, experts).permute(2, 0, 1).contiguous())


def target_parameters(names: Sequence[str], all_names: Iterable[str]) -> list[str]:
    """`experts.down_proj` where that means exactly the adapted parameters, else full names."""
    short = sorted({".".join(name.split(".")[-2:]) for name in names})
    meant = {name for name in all_names if any(name.endswith(f".{end}") for end in short)}
    return short if meant == set(names) else sorted(names)


def parameter_names(modules: Iterable[str], config: Mapping[str, Any], where: str) -> dict[str, str]:
    """Which parameter every module of the file stands for: {"….experts.base_layer": "….experts.gate_up_proj"}.

    Only modules that are meant by the config's `target_parameters` are in the answer. A name that ends in
    ".weight" is a linear layer that PEFT was told of in this way; it stands for itself.

    Raises:
        AdapterError: the file holds more or fewer updates of a module than the config names.
    """
    targets = [str(target) for target in config.get("target_parameters") or ()]
    levels: dict[str, list[str]] = {}
    for module in modules:
        plain = module
        while plain.endswith(BASE_LAYER):
            plain = plain.removesuffix(BASE_LAYER)
        levels.setdefault(plain, []).append(module)
    found: dict[str, str] = {}
    for plain, held in levels.items():
        meant = [parameter for parameter in reversed(ORDER) if any(
            f"{plain}.{parameter}" == target or f"{plain}.{parameter}".endswith(f".{target}") for target in targets)]
        if not meant:
            if len(held) > 1 or held[0] != plain:
                raise AdapterError(f"The adapter in {where} holds an update of {held[-1]}, but its target_parameters "
                                   "do not say of what.", "The file is incomplete.")
            continue
        held.sort(key=len)
        if len(held) != len(meant):
            raise AdapterError(f"The adapter in {where} holds {len(held)} updates of {plain}, but its "
                               f"target_parameters name {len(meant)}.", "The file is incomplete.")
        found |= {module: f"{plain}.{parameter}" for module, parameter in zip(held, meant, strict=True)}
    return found


def expert_name(parameter: str, expert: int) -> str:
    """The name of one expert's pair: "….experts.down_proj.3"."""
    return f"{parameter}.{expert}"


def parameter_of(name: str) -> str | None:
    """"….experts.down_proj" of "….experts.down_proj.3"; None for the name of a module."""
    stem, _, number = name.rpartition(".")
    return stem if number.isdigit() and stem.rpartition(".")[2] in ORDER else None


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor for all experts, from theirs in order."""
    return torch.stack(list(tensors))
