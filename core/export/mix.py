"""Several adapters of one base become one: a weighted sum of their changes, as a new adapter folder.

"cat" puts [w s A] above and [B] beside each other: exact, the ranks add up. "svd" is the best
approximation of that sum with a smaller rank. "linear" adds up √(w s) A and √(w s) B, which keeps the
rank but also mixes A of one adapter with B of another; PEFT has it, so it is here, and its error is told.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from core import files
from core.control import Control
from core.errors import AdapterError, CoreError
from core.events import Event, Progress, Result, Warned
from core.jobs import AdapterUse, MixAdapters
from core.lora.adapter_file import AdapterFile, read_adapter, write_adapter
from core.lora.peft_keys import LoraPair
from core.lora.plain_form import padded, plain_config, plain_tensors, require_low_rank
from core.lora.products import product_norm
from core.start import adapter_folder

How = Literal["linear", "cat", "svd"]
_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NOTEWORTHY_ERROR = 0.01


@dataclass(frozen=True)
class Part:
    """One adapter of a mix and its weight."""

    pairs: Mapping[str, LoraPair]
    strength: float


def mix_adapters(job: MixAdapters, control: Control) -> Iterator[Event]:
    """Write the mix into the new folder `job.out` -> Result(path, rank, modules, parameters, relative_error, bytes).

    `relative_error` is ||mix - wanted|| / ||wanted|| over all modules, where wanted is the exact weighted sum.

    Raises:
        CoreError: no adapters, a strength that is not finite, adapters of different bases, one that is more
            than a low-rank change, ranks that can not be mixed in this way, a folder that exists.
    """
    out = job.out.expanduser().absolute()
    if out.exists():
        raise CoreError(f"{out} exists already.", "Choose another name or remove it first.")
    yield Progress("Reading the adapters", 0, len(job.adapters), "adapters")
    adapters = read_mixable(job.adapters)
    control.check()
    parts = [Part(adapter.pairs, use.strength) for adapter, use in zip(adapters, job.adapters, strict=True)]
    rank = mixed_rank(parts, job.how, job.rank)
    pairs: dict[str, LoraPair] = {}
    report = _MixError()
    names = module_names(parts)
    for done, name in enumerate(names):
        control.check()
        yield Progress("Mixing", done, len(names), "modules")
        pairs[name] = mix_module(name, parts, job.how, rank)
        report.add(name, parts, pairs[name])
    pairs = padded(pairs, rank)
    tensors = {name: tensor.to(_TORCH_DTYPES[job.save_dtype]) for name, tensor in plain_tensors(pairs).items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise AdapterError(f"The mix holds numbers too large for {job.save_dtype}.",
                           "Choose smaller strengths, or fp32.")
    with files.atomic_folder(out) as folder:
        write_adapter(folder, tensors, plain_config([adapter.config for adapter in adapters], pairs, rank),
                      _origin(adapters, job))
        read_adapter(folder)  # what is written can be read
        written = sum(path.stat().st_size for path in folder.iterdir())
    if report.relative > _NOTEWORTHY_ERROR:
        yield Warned(f"The mix differs from the exact weighted sum by {report.relative:.0%}.",
                     "Use cat, or svd with a higher rank, to come closer.")
    yield Result({"path": out, "how": job.how, "rank": rank, "modules": len(pairs), "bytes": written,
                  "parameters": sum(tensor.numel() for tensor in tensors.values()),
                  "relative_error": report.relative})


def read_mixable(uses: Sequence[AdapterUse]) -> list[AdapterFile]:
    """The adapters of a mix, checked to be low-rank changes of one base.

    Raises:
        CoreError: none, one that can not be mixed, or bases that differ.
    """
    if not uses:
        raise CoreError("There is nothing to mix.", "Name at least one adapter.")
    for use in uses:
        if not math.isfinite(use.strength):
            raise CoreError(f"The strength of {use.path.name} is not a finite number.")
    adapters = [read_adapter(adapter_folder(use.path.expanduser().absolute())) for use in uses]
    for adapter in adapters:
        require_low_rank(adapter, "mixed")
    first = adapters[0]
    for adapter in adapters[1:]:
        prints = [one.origin.get("base_fingerprint") for one in (first, adapter)]
        if all(prints) and prints[0] != prints[1]:
            raise AdapterError(f"{adapter.path} was trained on another base model than {first.path}.",
                               "Only adapters of one base can be mixed.")
        for name in sorted(set(first.pairs) & set(adapter.pairs)):
            if _shape(first.pairs[name]) != _shape(adapter.pairs[name]):
                raise AdapterError(f"{name} is {_shape(adapter.pairs[name])} in {adapter.path}, but "
                                   f"{_shape(first.pairs[name])} in {first.path}.",
                                   "Only adapters of one base can be mixed.")
    return adapters


def _shape(pair: LoraPair) -> tuple[int, int]:
    return pair.lora_b.shape[0], pair.lora_a.shape[1]


def module_names(parts: Sequence[Part]) -> list[str]:
    """Every module that an adapter of the mix changes, in the order of the files."""
    return list(dict.fromkeys(name for part in parts for name in part.pairs))


def mixed_rank(parts: Sequence[Part], how: How, rank: int) -> int:
    """The rank of the mix, as PEFT has it: that of all (linear), the sum (cat), `rank` or the largest (svd).

    Raises:
        AdapterError: linear mixing of adapters with different ranks; a rank where there is none to choose.
    """
    ranks = [max((pair.lora_a.shape[0] for pair in part.pairs.values()), default=0) for part in parts]
    if how != "svd" and rank:
        raise AdapterError("A rank can only be chosen for a mix by svd.", "Leave it out, or use svd.")
    if how == "linear":
        all_ranks = {pair.lora_a.shape[0] for part in parts for pair in part.pairs.values()}
        if len(all_ranks) > 1:
            raise AdapterError(f"These adapters have different ranks ({', '.join(map(str, sorted(all_ranks)))}), which "
                               "can not be added up.", "Use cat or svd instead.")
        return max(ranks)
    if how == "cat":
        return max(1, sum(ranks))
    if rank < 0:
        raise AdapterError("The rank of a mix must be at least 1.")
    return rank or max(1, *ranks)


def mix_module(name: str, parts: Sequence[Part], how: How, rank: int) -> LoraPair:
    """The mixed update of one module, with the factor 1; its own rank is at most `rank`."""
    weighted = [(part.pairs[name], part.strength * part.pairs[name].scale) for part in parts if name in part.pairs]
    if how == "linear":
        lora_a = torch.stack([math.copysign(math.sqrt(abs(weight)), weight) * pair.lora_a.double()
                              for pair, weight in weighted]).sum(dim=0)
        lora_b = torch.stack([math.sqrt(abs(weight)) * pair.lora_b.double() for pair, weight in weighted]).sum(dim=0)
        return _like(weighted[0][0], lora_a, lora_b)
    left, right = _side_by_side(weighted)
    if how == "svd":
        left, right = truncated(left, right, rank)
    return _like(weighted[0][0], right, left)


def _like(pair: LoraPair, lora_a: Tensor, lora_b: Tensor) -> LoraPair:
    return LoraPair(lora_a.float(), lora_b.float(), 1.0, embedding=pair.embedding, kernel=pair.kernel)


def _side_by_side(weighted: Sequence[tuple[LoraPair, float]]) -> tuple[Tensor, Tensor]:
    """[B₁ B₂ …] (out, Σr) and [w₁A₁; w₂A₂; …] (Σr, in) in fp64: their product is the exact weighted sum."""
    left = torch.cat([pair.lora_b.double() for pair, _ in weighted], dim=1)
    right = torch.cat([weight * pair.lora_a.double() for pair, weight in weighted])
    return left, right


def truncated(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U S (out, r) and Vᵀ (r, in) of the best approximation of `left right` with r = `rank` at most.

    The singular values are those of a small matrix: left = Q₁R₁, rightᵀ = Q₂R₂, left right = Q₁ (R₁R₂ᵀ) Q₂ᵀ.
    """
    if left.shape[1] == 0:
        return left, right
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T)
    kept = min(rank, len(s))
    return q_left @ (u[:, :kept] * s[:kept]), vh[:kept] @ q_right.T


class _MixError:
    """||mix - wanted|| / ||wanted|| over all modules."""

    def __init__(self) -> None:
        self._error_square = self._wanted_square = 0.0

    def add(self, name: str, parts: Sequence[Part], mixed: LoraPair) -> None:
        """Count one module."""
        left, right = _side_by_side([(part.pairs[name], part.strength * part.pairs[name].scale)
                                     for part in parts if name in part.pairs])
        self._wanted_square += product_norm(left, right) ** 2
        self._error_square += product_norm(torch.cat([mixed.lora_b.double(), -left], dim=1),
                                           torch.cat([mixed.lora_a.double(), right])) ** 2

    @property
    def relative(self) -> float:
        """0 where nothing was wanted."""
        return math.sqrt(self._error_square / self._wanted_square) if self._wanted_square > 0 else 0.0


def _origin(adapters: Sequence[AdapterFile], job: MixAdapters) -> dict[str, Any]:
    """workbench.json of the mix: the base that all share, and what was mixed how."""
    known = next((adapter.origin for adapter in adapters if adapter.origin.get("base_fingerprint")), {})
    kept = {key: known[key] for key in ("base_fingerprint", "base_name", "base_path", "base_origin") if key in known}
    return {**kept, "mixed_by": job.how,
            "mixed_from": [{"adapter": _name(use.path), "strength": use.strength} for use in job.adapters]}


def _name(path: Path) -> str:
    """`run` for <runs>/run/adapter, else the folder's own name."""
    return path.parent.name if path.name == "adapter" else path.name
