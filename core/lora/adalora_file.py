"""The file of AdaLoRA, as PEFT lays it out.

`base_model.model.<module>.lora_A` (r, in), `.lora_E` (r, 1) and `.lora_B` (out, r), without `.weight`, hold the
triplets that were kept; `rank_pattern` in adapter_config.json says which of the first `init_r` those are.
The update is alpha / (init_r + 1e-5) · B (A ⊙ E).
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.adapter_folder import ADALORA_TYPE
from core.config import AdaLoraConfig
from core.errors import AdapterError
from core.targets import RANK_OFFSET

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A|lora_E|lora_B)")


def layer_tensors(name: str, lora_a: Tensor, lora_e: Tensor, lora_b: Tensor, kept: Tensor | None,
                  dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one module by their names in the file; `kept` (r,) chooses the triplets, None is all."""
    kept = torch.ones(lora_a.shape[0], dtype=torch.bool) if kept is None else kept
    parts = {"lora_A": lora_a.detach().cpu()[kept], "lora_E": lora_e.detach().cpu()[kept],
             "lora_B": lora_b.detach().cpu()[:, kept]}
    return {f"base_model.model.{name}.{part}": tensor.to(dtype).contiguous() for part, tensor in parts.items()}


def schedule_config(adapter: AdaLoraConfig, total_steps: int, kept: dict[str, Tensor]) -> dict[str, Any]:
    """AdaLoRA's own fields of adapter_config.json; `kept` (r,) by module name, {} where nothing was pruned yet."""
    start, end = adapter.pruning_steps(total_steps)
    return {
        "peft_type": ADALORA_TYPE,
        "init_r": adapter.first_rank, "target_r": adapter.rank, "tinit": start, "tfinal": total_steps - end,
        "deltaT": adapter.budget_every, "beta1": adapter.sensitivity_beta, "beta2": adapter.uncertainty_beta,
        "orth_reg_weight": adapter.orthogonality, "total_step": total_steps,
        "rank_pattern": {f"{name}.lora_E": mask.tolist() for name, mask in kept.items()} or None,
    }


@dataclass(frozen=True)
class Triplets:
    """What a file holds of one module: `a` (r, in), `e` (r, 1), `b` (out, r), the scale of the update, and which of
    the `first_rank` triplets of the start these are: `places` (r,)."""

    a: Tensor
    e: Tensor
    b: Tensor
    scale: float
    places: Tensor
    first_rank: int

    def folded(self) -> tuple[Tensor, Tensor, float]:
        """A ⊙ E (r, in) in fp32 as PEFT does, whatever the file holds them in, B (out, r) and the scale."""
        return self.a.float() * self.e.float(), self.b, self.scale


def fold(tensors: dict[str, Tensor], config: dict[str, Any], folder: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A ⊙ E, B and the scale of every module of a file (see `Triplets.folded`); r may be 0.

    Raises:
        AdapterError: as `read_triplets`.
    """
    return {module: triplets.folded() for module, triplets in read_triplets(tensors, config, folder).items()}


def read_triplets(tensors: dict[str, Tensor], config: dict[str, Any], folder: Path) -> dict[str, Triplets]:
    """The triplets of every module of a file.

    Raises:
        AdapterError: a key of another kind, a part that is missing, shapes that do not fit, a damaged config.
    """
    first = config.get("init_r")
    alpha = config.get("lora_alpha")
    if not isinstance(first, int) or first < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(f"The adapter in {folder} has init_r = {first!r} and lora_alpha = {alpha!r}, "
                           "which can not be used.")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterError(f"The adapter in {folder} holds {key}, which is not an AdaLoRA matrix of a linear "
                               "layer.", "It was made by another method or another program.")
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"The adapter in {folder} holds numbers that are not finite in {key}.")
        parts.setdefault(match["module"], {})[match["part"]] = tensor
    if not parts:
        raise AdapterError(f"The adapter in {folder} is empty.")
    places = _places(config.get("rank_pattern"), first, folder)
    scale = (alpha if alpha > 0 else first) / (first + RANK_OFFSET)  # as PEFT takes an alpha of zero
    unknown = sorted(set(places) - set(parts))
    if unknown:
        raise AdapterError(f"The adapter in {folder} names ranks for {unknown[0]}, of which it holds nothing.")
    triplets = {}
    for module, found in parts.items():
        kept = places.get(module)
        a, e, b = _checked(module, found, first if kept is None else len(kept), folder)
        triplets[module] = Triplets(a, e, b, scale, torch.arange(first) if kept is None else kept, first)
    return triplets


def _places(pattern: Any, first: int, folder: Path) -> dict[str, Tensor]:
    """Which triplets of each module the file holds, (r,)."""
    places = {}
    for key, kept in (pattern or {}).items():
        if not isinstance(kept, list) or len(kept) != first or not all(isinstance(one, bool) for one in kept):
            raise AdapterError(f"The adapter in {folder} has a rank_pattern for {key} that is not a list of {first} "
                               "truth values.")
        module = re.sub(r"\.lora_E(\.\w+)?$", "", str(key))  # older files name the adapter behind it
        places[module] = torch.tensor(kept).nonzero().view(-1)
    return places


def _checked(module: str, found: dict[str, Tensor], rank: int, folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    if set(found) != {"lora_A", "lora_E", "lora_B"}:
        raise AdapterError(f"The adapter in {folder} holds only a part of {module}.", "The file is incomplete.")
    a, e, b = found["lora_A"], found["lora_E"], found["lora_B"]
    if a.ndim != 2 or b.ndim != 2 or e.shape != (rank, 1) or a.shape[0] != rank or b.shape[1] != rank:
        raise AdapterError(f"The adapter in {folder} says rank {rank} for {module} but holds A {tuple(a.shape)}, "
                           f"E {tuple(e.shape)} and B {tuple(b.shape)}.")
    return a, e, b
