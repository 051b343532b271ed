"""The several processes of a run, over torch.distributed: gloo on the CPU, NCCL between GPUs.

The store that torchrun keeps outlives any one of them: through it rank 0 tells what is the same for all, and a rank
that fails says why.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from core.control import Command, Control
from core.errors import CoreError, PeerLost, ToldElsewhere, describe
from core.launch import Place
from core.models.device import resolve_device
from core.training.parallel import Ranks

_PATIENCE = timedelta(minutes=30)  # for the slowest rank: loading a model, computing a step
_REASON_SECONDS = 3.0  # a rank that fails says why before it lets go of the others
_TELL_SECONDS = 10.0
_PAUSE_SECONDS = 0.2
_LOOK_SECONDS = 0.02
_HALF = 2**20  # so that sums of counts are exact in fp32


class TorchRanks(Ranks):
    """Several processes that torchrun started; see `joined`."""

    def __init__(self, where: Place) -> None:
        super().__init__(where)
        store, rank, world = next(iter(rendezvous("env://", timeout=_PATIENCE)))
        self._store = PrefixStore("run", store)
        self._told: _SharedControl | None = None
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        if cuda and where.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(where.local_rank)
        # small things are agreed on without the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE,
                                store=PrefixStore("group", store), rank=rank, world_size=world)

    @classmethod
    @contextlib.contextmanager
    def joined(cls, where: Place) -> "Iterator[TorchRanks]":
        """Join the other processes; an error within this ends the run on all of them."""
        ranks = cls(where)
        try:
            yield ranks
        except Exception as error:  # noqa: BLE001 - passed on to the others, and raised again
            ranks.explain(error)
        finally:
            _leave()

    def device(self, name: str) -> torch.device:
        """The GPU with this process's number, or the CPU. Raises CoreError where a device is not one for all."""
        if name not in ("auto", "all", "cuda", "cpu"):
            raise CoreError(f"The device {name} is a single one, and this run has {self.place.world} processes.",
                            "Set training.device to auto.")
        if name == "cpu" or (name in ("auto", "all") and not torch.cuda.is_available()):
            return torch.device("cpu")
        return resolve_device(f"cuda:{self.place.local_rank}")

    def control(self, control: Control) -> Control:
        """A Control that changes on all ranks after the same step."""
        self._told = _SharedControl(control, self.sums)
        return self._told

    def agreed(self, key: str, compute: Callable[[], str]) -> str:
        """Rank 0 tells through the store, in which the others wait."""
        if self.place.first:
            value = compute()
            self._store.set(f"agreed/{key}", value)
            return value
        return self._in_store(f"agreed/{key}")

    def require_same(self, what: str, digest: str) -> None:
        """Raises CoreError on every rank that has another digest than rank 0."""
        if self.agreed(what, lambda: digest) != digest:
            raise CoreError(f"The {what} here are not those of the first process.",
                            "Every machine needs the same files and the same version of the program.")

    def begin_same(self, tensors: Sequence[Tensor]) -> None:
        """One flattened broadcast for each kind of number."""
        kinds = dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors)
        for kind in kinds:
            group = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
            with _watched(self):
                dist.broadcast(flat, 0)
            with torch.no_grad():
                for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def begin_step(self, step: int, seed: int) -> None:
        """Draw from seed, step and rank: ranks drop other numbers, and a checkpoint need not hold all generators."""
        torch.manual_seed(int(np.random.SeedSequence([seed, step, self.place.rank]).generate_state(1)[0]))

    def add_up(self, parameters: Sequence[nn.Parameter], loss: float, tokens: int, labels: int,
               ) -> tuple[float, int, int]:
        """One all-reduce, in fp32 whatever the gradients are in; with GPUs the counts go before it, on the CPU.

        A parameter that no rank's rows have reached keeps no gradient, as in one process.
        """
        assert self._told is not None, "the steps obey the control that all ranks share"
        reached = [float(parameter.grad is not None) for parameter in parameters]
        counts = torch.tensor([*reached, loss, *_halves(tokens), *_halves(labels), *self._told.wishes()])
        flat = torch.cat([_flat_gradient(parameter) for parameter in parameters])
        with _watched(self):
            if flat.device.type == "cpu":
                together = torch.cat([flat, counts])
                dist.all_reduce(together)
                flat, counts = together.split([len(flat), len(counts)])
            else:  # a rank that is gone is noticed on the CPU; a GPU would wait for it without a word
                dist.all_reduce(counts)
                dist.all_reduce(flat)
        gradients = flat.split([parameter.numel() for parameter in parameters])
        found = counts.tolist()
        for parameter, gradient, count in zip(parameters, gradients, found, strict=False):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if count else None
        loss, *halves, stop, pause, checkpoint = found[len(parameters):]
        self._told.obey(stop, pause, checkpoint)
        return loss, _whole(*halves[:2]), _whole(*halves[2:])

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """In fp64 on the CPU; NaN and infinity stay what they are."""
        flat = torch.tensor(numbers, dtype=torch.float64)
        with _watched(self):
            dist.all_reduce(flat)
        return tuple(flat.tolist())

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """Raises PeerLost where the weights are sharded and another rank is gone."""
        return _watched(self) if self.sharded else contextlib.nullcontext()

    def reason(self) -> tuple[str, str]:
        """Why another rank let go of us, and a hint."""
        try:
            self._store.wait(["failed"], timedelta(seconds=_REASON_SECONDS))
            words, message, hint = json.loads(self._store.get("failed"))
        except RuntimeError:  # killed: it could not say
            return ("Another process of this run has ended unexpectedly.",
                    "Start all of them again with `resume`; what was learned is in the last checkpoint.")
        return f"The {words} has failed: {message}", hint

    def explain(self, error: Exception) -> NoReturn:
        """Leave the group and raise what this rank has to say: of all ranks one tells the person.

        Raises:
            ToldElsewhere: another one does.
        """
        if not isinstance(error, PeerLost) and self._store.add("failures", 1) == 1:
            said = describe(error)
            self._store.set("failed", json.dumps([self.place.words, said.message, said.hint]))
        _leave()  # the others wait for us in vain; now they notice
        if self.place.first:
            self._store.set("told", "")
            raise error
        try:
            self._store.wait(["told"], timedelta(seconds=_TELL_SECONDS))
        except RuntimeError:  # rank 0 was killed, or the store with it
            if self._store.add("tellers", 1) == 1:
                raise error from None
        raise ToldElsewhere(str(error)) from error

    def _in_store(self, key: str) -> str:
        """Wait for what rank 0 tells; not in the store itself, where a signal would not be heard."""
        end = time.monotonic() + _PATIENCE.total_seconds()
        with _watched(self):
            while not self._store.check([key]):
                if self._store.check(["failed"]) or time.monotonic() > end:
                    raise PeerLost(*self.reason())
                time.sleep(_LOOK_SECONDS)
            return self._store.get(key).decode()


class _SharedControl(Control):
    """What all ranks were told, as they agreed on it after the last step."""

    def __init__(self, own: Control, sums: Callable[..., tuple[float, ...]]) -> None:
        super().__init__()
        self._own = own
        self._sums = sums

    def wishes(self) -> tuple[float, float, float]:
        """What this rank was told: stop, pause, checkpoint."""
        return float(self._own.stop_requested), float(self._own.paused), float(self._own.take_checkpoint_request())

    def obey(self, stop: float, pause: float, checkpoint: float) -> None:
        """Do what at least one rank was told."""
        if bool(pause) != self.paused:
            self.send(Command.PAUSE if pause else Command.RESUME)
        if checkpoint:
            self.checkpoint()
        if stop:
            self.stop()

    def wait_while_paused(self) -> None:
        """All ranks wait together, and ask one another: one that waits in vain for long would be given up."""
        while self.paused and not self.stop_requested:
            time.sleep(_PAUSE_SECONDS)
            self.obey(*self._sums(*self.wishes()))

    def check(self) -> None:
        """Before the first step each rank looks for itself; one that ends takes the others with it."""
        self._own.check()


def _leave() -> None:
    """Leave the process group, once."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _flat_gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
    return parameter.grad.reshape(-1).float()


def _halves(count: int) -> tuple[int, int]:
    return divmod(count, _HALF)


def _whole(high: float, low: float) -> int:
    return round(high * _HALF + low)


@contextlib.contextmanager
def _watched(ranks: TorchRanks) -> Iterator[None]:
    """Turn the end of another process into one sentence.

    Raises:
        PeerLost: a collective failed, as another rank is gone or has been silent for too long.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch.distributed raises nothing narrower than that for all of its backends
        message, hint = ranks.reason()
        raise PeerLost(message, hint, str(error)) from error
