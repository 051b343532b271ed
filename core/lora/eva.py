"""In which directions the inputs of layers vary most, from some training rows (EVA, arXiv 2410.07170).

The rows pass the model in batches; every batch updates a running singular value decomposition of the inputs
of each layer (incremental PCA, Ross et al. 2008), until its directions stand still. Layers that are given
the same input, such as query, key and value, share one decomposition.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.lora.inject import adapter_disabled
from core.lora.method import Material
from core.lora.svd import leading_svd

BATCH_TOKENS = 1024
_MOST_BATCHES = 16
_ALIKE = 0.99  # cosine of a direction before and after a batch at which it stands still
_REMEMBERED = 4  # inputs that a later layer may share
_ITERATIONS = 4


class RunningSvd:
    """The leading directions of rows that come in batches, and how much of their variance each explains."""

    def __init__(self, rank: int, generator: torch.Generator) -> None:
        self.rank = rank
        self.converged = False
        self._generator = generator
        self._rows = 0
        self._directions = torch.empty(0)  # (k, d); some more than `rank`, which keeps those exact
        self._singular = torch.empty(0)  # (k,)
        self._mean = torch.empty(0)
        self._total = 0.0  # squares of all rows about their mean

    @property
    def directions(self) -> Tensor:
        """(rank, d), or fewer rows where fewer were seen; orthonormal."""
        return self._directions[:self.rank]

    @property
    def explained(self) -> float:
        """Share of the variance that lies in `directions`."""
        kept = float(self._singular[:self.rank].square().sum())
        return kept / self._total if self._total > 0 else 1.0

    def update(self, rows: Tensor) -> None:
        """Take in `rows` (n, d)."""
        rows = rows.float()
        count, mean = len(rows), rows.mean(dim=0)
        centred = rows - mean
        before = self.directions
        self._total += float(centred.square().sum())
        stacked = centred
        if self._rows:
            shift = math.sqrt(self._rows * count / (self._rows + count)) * (self._mean - mean)
            self._total += float(shift.square().sum())
            stacked = torch.cat([self._singular[:, None] * self._directions, centred, shift[None]])
            mean = (self._rows * self._mean + count * mean) / (self._rows + count)
        self._rows += count
        self._mean = mean
        kept = min(2 * self.rank, *stacked.shape)
        _, self._singular, self._directions = leading_svd(stacked, kept, self._generator, _ITERATIONS)
        if before.shape == self.directions.shape:
            alike = (before * self.directions).sum(dim=1).abs()
            self.converged = bool((alike >= _ALIKE).all())


@torch.no_grad()
def directions_of_inputs(model: PreTrainedModel, ranks: Mapping[str, int], material: Material,
                         generator: torch.Generator) -> dict[str, tuple[Tensor, float]]:
    """For every module named in `ranks` its leading input directions (rank, in) and the share that they explain.

    Modules whose inputs were never seen are left out. Only supervised tokens count, as in PEFT.

    Raises:
        Cancelled: `material.check` was told to stop.
    """
    watch = _Watch(ranks, generator)
    handles = [model.get_submodule(name).register_forward_pre_hook(watch.hook(name)) for name in ranks]
    try:
        with adapter_disabled(model):
            for rows in _batches(material.rows, generator):
                material.check()
                watch.run(model, rows)
                if watch.has_converged():
                    break
    finally:
        for handle in handles:
            handle.remove()
    return {name: (found.directions[:rank], found.explained) for name, rank in ranks.items()
            if (found := watch.of(name)) is not None}


class _Watch:
    """Takes the inputs of modules while the model runs."""

    def __init__(self, ranks: Mapping[str, int], generator: torch.Generator) -> None:
        self._ranks = ranks
        self._generator = generator
        self._leader: dict[str, str] = {}  # the first module with the same input
        self._found: dict[str, RunningSvd] = {}  # by leader
        self._recent: list[tuple[Tensor, str]] = []
        self._used = torch.empty(0)  # (tokens,) bool: the positions that count

    def of(self, name: str) -> RunningSvd | None:
        """What was found for a module."""
        return self._found.get(self._leader.get(name, ""))

    def has_converged(self) -> bool:
        """True once no direction turns any more."""
        return bool(self._found) and all(found.converged for found in self._found.values())

    def run(self, model: PreTrainedModel, rows: Sequence[Any]) -> None:
        """Let `rows` pass, side by side."""
        longest = max(len(row.input_ids) for row in rows)
        ids = np.zeros((len(rows), longest), dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        used = np.zeros((len(rows), longest), dtype=bool)
        for number, row in enumerate(rows):
            length = len(row.input_ids)
            ids[number, :length] = row.input_ids
            mask[number, :length] = 1
            used[number, :length] = row.supervised
        self._used = torch.from_numpy(used.reshape(-1)).to(model.device)
        # the output head is large, and is run only where its input is asked for
        inner = model.base_model
        names = {name for name, _ in inner.named_modules(prefix=model.base_model_prefix)}
        runner: nn.Module = inner if self._ranks.keys() <= names else model
        runner(input_ids=torch.from_numpy(ids).to(model.device),
               attention_mask=torch.from_numpy(mask).to(model.device), use_cache=False)
        self._recent.clear()

    def hook(self, name: str) -> Any:
        """A forward pre-hook for the module called `name`."""
        def take(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            leader = self._leader.get(name)
            if leader is None:
                leader = next((other for tensor, other in self._recent if tensor is inputs[0]), name)
                self._leader[name] = leader
                self._recent = [*self._recent, (inputs[0], leader)][-_REMEMBERED:]
            if leader == name:
                self._update(name, inputs[0])

        return take

    def _update(self, name: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) == len(self._used):  # else the model has sorted the tokens, as experts do
            rows = rows[self._used]
        if name not in self._found and len(rows):
            self._found[name] = RunningSvd(max(self._ranks.values()), self._generator)
        if len(rows) and not self._found[name].converged:
            self._found[name].update(rows)


def _batches(rows: Sequence[Any], generator: torch.Generator) -> Iterator[list[Any]]:
    """Rows in a random order, in batches of about BATCH_TOKENS tokens."""
    batch: list[Any] = []
    batches = 0
    for number in torch.randperm(len(rows), generator=generator).tolist():
        longest = max([len(row.input_ids) for row in [*batch, rows[number]]])
        if batch and longest * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batches += 1
            batch = []
            if batches == _MOST_BATCHES:
                return
        batch.append(rows[number])
    if batch:
        yield batch
