"""Several processes that train one adapter: each computes its share of a step's rows, then all add up.

Every rank holds the same adapter and the same rows. A step's rows are divided by their tokens, the gradients of
the summed loss are added up in one flattened all-reduce, and every rank takes the same optimizer step. So N ranks
give the gradients of one. The same all-reduce carries what the ranks were told (stop, pause, checkpoint), so that
all obey after the same step. `core.training.torch_ranks` does that with torch.distributed.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from core.control import Control
from core.data.batching import Batch
from core.data.template import EncodedRow
from core.launch import Place, place
from core.models.device import resolve_device

Batcher = Callable[[Sequence[EncodedRow]], list[Batch]]


class Ranks:
    """The processes of one run; this form is one process alone, where nothing is divided or agreed on."""

    def __init__(self, where: Place | None = None) -> None:
        self.place = where or Place()
        self.sharded = False  # True: the frozen weights are spread, so all ranks must compute equally many batches

    @property
    def several(self) -> bool:
        """True where there is more than one process."""
        return self.place.world > 1

    def device(self, name: str) -> torch.device:
        """Where this process computes; `name` is that of training.device.

        Raises:
            CoreError: this machine has no such device.
        """
        return resolve_device(name)

    def words(self, device: torch.device) -> str:
        """Where the run computes, for people."""
        spread = ", the base spread over them" if self.sharded else ""
        return f"{self.place.world} x {device.type}{spread}" if self.several else str(device)

    def control(self, control: Control) -> Control:
        """What the steps obey: what any rank was told, as all have agreed on it."""
        return control

    def agreed(self, key: str, compute: Callable[[], str]) -> str:
        """What rank 0 computes, on every rank. `key` names the question."""
        return compute()

    def require_same(self, what: str, digest: str) -> None:
        """Refuse ranks that differ. Raises CoreError; `what` is a part of its sentence."""

    def begin_same(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the numbers of rank 0."""

    def begin_step(self, step: int, seed: int) -> None:
        """Called before each step."""

    def share(self, rows: Sequence[EncodedRow]) -> list[EncodedRow]:
        """Those of `rows` that this rank computes."""
        return divide(rows, self.place.world)[self.place.rank]

    def batches(self, rows: Sequence[EncodedRow], size: int, batcher: Batcher) -> list[Batch]:
        """This rank's batches of `rows`, of at most `size` rows each.

        With sharded weights every rank has equally many; those beyond its own are without labels.
        """
        own = _cut(self.share(rows), size, batcher)
        if not self.sharded:
            return own
        most = max(len(_cut(share, size, batcher)) for share in divide(rows, self.place.world))
        idle = _without_labels(own[-1] if own else _cut(rows[:1], size, batcher)[0])
        return own + [idle] * (most - len(own))

    def add_up(self, parameters: Sequence[nn.Parameter], loss: float, tokens: int, labels: int,
               ) -> tuple[float, int, int]:
        """Add up over all ranks the gradients in place, and these numbers of a step."""
        return loss, tokens, labels

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """The sum of each number over all ranks."""
        return numbers

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward passes, in which ranks with sharded weights wait for one another."""
        return contextlib.nullcontext()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this run; within this, the first that fails ends the run on all of them."""
    where = place()
    if where.world == 1:
        yield Ranks()
        return
    from core.training.torch_ranks import TorchRanks  # noqa: PLC0415 - needed by several only

    with TorchRanks.joined(where) as ranks:
        yield ranks


def divide(rows: Sequence[EncodedRow], parts: int) -> list[list[EncodedRow]]:
    """`rows` in `parts` with about equally many tokens each, in their order: the longest first to the emptiest."""
    if parts == 1:
        return [list(rows)]
    filled, chosen = [0] * parts, [[] for _ in range(parts)]
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index].input_ids)):
        part = filled.index(min(filled))
        filled[part] += len(rows[index].input_ids)
        chosen[part].append(index)
    return [[rows[index] for index in sorted(indices)] for indices in chosen]


def _cut(rows: Sequence[EncodedRow], size: int, batcher: Batcher) -> list[Batch]:
    return [batch for first in range(0, len(rows), size) for batch in batcher(rows[first:first + size])]


def _without_labels(batch: Batch) -> Batch:
    return replace(batch, predicting=batch.predicting[:0], labels=batch.labels[:0], tokens=0)
