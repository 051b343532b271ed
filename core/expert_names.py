"""How an adapter file names the updates of experts, by PEFT's `target_parameters`. Plain Python.

PEFT wraps the module of the experts once for each adapted parameter, the later one outside: with both,
`….experts.lora_A.weight` is of `down_proj` and `….experts.base_layer.lora_A.weight` of `gate_up_proj`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from core.errors import AdapterError

BASE_LAYER = ".base_layer"
ORDER = ("gate_up_proj", "up_proj", "down_proj")  # as transformers registers them


def written_module(name: str, adapted: Collection[str]) -> str:
    """Below which module the file holds the update of the parameter `name`, given all adapted parameters."""
    module, _, parameter = name.rpartition(".")
    outside = [other for other in ORDER[ORDER.index(parameter) + 1:] if f"{module}.{other}" in adapted]
    return module + BASE_LAYER * len(outside)


def target_parameters(names: Collection[str], all_names: Iterable[str]) -> list[str]:
    """`experts.down_proj` where that means exactly the adapted parameters, else full names."""
    short = sorted({".".join(name.split(".")[-2:]) for name in names})
    meant = {name for name in all_names if any(name.endswith(f".{end}") for end in short)}
    return short if meant == set(names) else sorted(names)


def parameter_names(modules: Iterable[str], config: Mapping[str, Any], where: str) -> dict[str, str]:
    """Which parameter every module of the file stands for: {"….experts.base_layer": "….experts.gate_up_proj"}.

    Only modules that are meant by the config's `target_parameters` are in the answer; a linear layer that PEFT was
    told of in this way ("….down_proj.weight") stands for itself.

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
        meant = [parameter for parameter in reversed(ORDER)
                 if any(f".{plain}.{parameter}".endswith(f".{target}") for target in targets)]
        held.sort(key=len)
        if len(held) == len(meant):
            found |= {module: f"{plain}.{parameter}" for module, parameter in zip(held, meant, strict=True)}
        elif meant or held != [plain]:
            raise AdapterError(f"The adapter in {where} holds {len(held)} updates of {plain}, but its "
                               f"target_parameters name {len(meant)}.", "The file is incomplete.")
    return found


def expert_name(parameter: str, expert: int) -> str:
    """The name of one expert's pair: "….experts.down_proj.3"."""
    return f"{parameter}.{expert}"


def parameter_of(name: str) -> str | None:
    """"….experts.down_proj" of "….experts.down_proj.3"; None for the name of a module."""
    stem, _, number = name.rpartition(".")
    return stem if number.isdigit() and stem.rpartition(".")[2] in ORDER else None


def linear_parameters(names: Sequence[str]) -> list[str]:
    """Linear layers of a mixture that PEFT finds only as parameters ("….shared_expert.up_proj.weight").

    PEFT takes the names of the older, separate experts in `target_modules` for today's joint parameters, so that
    it would not find a layer that is still called so.
    """
    return [name for name in names if name.rpartition(".")[2] in _OLD_EXPERTS]


_OLD_EXPERTS = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate"})
