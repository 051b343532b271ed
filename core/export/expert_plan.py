"""Experts in a checkpoint: there each has tensors of its own, in the model all are one parameter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from core.errors import AdapterError, ModelError
from core.export.keys import ModelKeys
from core.export.shards import Checkpoint
from core.lora.expert_pairs import stacked
from core.lora.peft_keys import LoraPair


def plan_experts(checkpoint: Checkpoint, keys: ModelKeys, experts: Mapping[str, Sequence[LoraPair]],
                 ) -> dict[str, LoraPair]:
    """The update of every tensor of the checkpoint that holds experts, by its key.

    A tensor of one expert gets that expert's update, or the rows of it that it holds; a tensor of all of them
    gets a pair with A (experts, r, in) and B (experts, out, r).

    Raises:
        AdapterError: the updates do not fit the experts of the base.
        ModelError: the checkpoint stores the experts in a form that can not be changed tensor by tensor.
    """
    planned: dict[str, LoraPair] = {}
    keys_of = {parameter: key for key, parameter in keys.parameter_of.items()}
    for parameter, pairs in experts.items():
        _check_shape(parameter, pairs, keys)
        if parameter in keys_of:
            lora_a, lora_b = stacked(pairs)
            planned[keys_of[parameter]] = LoraPair(lora_a, lora_b, pairs[0].scale)
            continue
        places = {key: place for key, place in keys.experts.items() if place.parameter == parameter}
        rows = {key: checkpoint.tensors[key].shape for key in places}
        full = pairs[0].lora_b.shape[0]
        if sum(shape[0] for shape in rows.values()) != full * len(pairs) \
                or any(len(shape) != 2 or shape[1] != pairs[0].lora_a.shape[1] for shape in rows.values()):
            raise ModelError(f"The adapter changes {parameter}, which the base's files store in another form.",
                             "Export the adapter instead; this part can not be merged.")
        for key, place in places.items():
            own = pairs[place.expert]
            planned[key] = replace(own, lora_b=own.lora_b[place.start:place.start + rows[key][0]])
    return planned


def _check_shape(parameter: str, pairs: Sequence[LoraPair], keys: ModelKeys) -> None:
    shape = (len(pairs), pairs[0].lora_b.shape[0], pairs[0].lora_a.shape[1])
    has = keys.shapes.get(parameter)
    if has is not None and parameter in keys.transposed:
        has = (has[0], has[2], has[1])
    if has != shape:
        raise AdapterError(f"The adapter's update of {parameter} is for {shape[0]} experts of {shape[1:]}, "
                           f"but the weight is {has}.", "Choose the base model that the adapter was trained on.")


def gathered(keys: ModelKeys, parameter: str, read: Callable[[str], Tensor]) -> Tensor:
    """The parameter (experts, out, in) from its tensors in the checkpoint; `read` gives one by its key."""
    places = sorted(((place.expert, place.start, key) for key, place in keys.experts.items()
                     if place.parameter == parameter))
    experts: dict[int, list[Tensor]] = {}
    for expert, _, key in places:
        experts.setdefault(expert, []).append(read(key))
    return torch.stack([torch.cat(parts) for parts in experts.values()])


def is_gathered(keys: ModelKeys, parameter: str) -> bool:
    """True for a parameter that the checkpoint holds as tensors of single experts."""
    return any(place.parameter == parameter for place in keys.experts.values())
