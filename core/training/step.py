"""One step: forward and backward over its rows, clipping, the optimizer."""

import math
import time
from collections.abc import Sequence

import psutil
import torch

from core.control import Control
from core.data.batching import step_rows
from core.data.template import EncodedRow
from core.events import StepDone
from core.models.device import gpu_peak_bytes
from core.training.schedule import learning_rate_at, steps_per_epoch
from core.training.setup import Setup
from core.training.shared_prefix import SharedPrefix, share_prefix


def one_step(setup: Setup, optimizer: torch.optim.Optimizer, step: int, total: int,
             control: Control) -> StepDone | None:
    """One optimizer step over batch_size x gradient_accumulation rows; None where a stop came in between.

    The summed loss is divided by the supervised tokens of the whole step, so neither the split into
    batches nor their lengths change the gradient.
    """
    started = time.perf_counter()
    training = setup.config.training
    rows = rows_of(setup, step)
    supervised = sum(int(row.supervised.sum()) for row in rows)
    optimizer.zero_grad()
    setup.ranks.begin_step(step, training.seed)
    sums = _accumulate(setup, rows, supervised, control)
    if sums is None:
        return None
    loss, tokens, labels = setup.ranks.add_up(_parameters(optimizer), *sums)
    assert labels == supervised, "the shares of the ranks are the whole step"
    penalty = setup.adaptation.penalty(setup.model)
    if penalty is not None:
        penalty.backward()
    grad_norm = _clip(optimizer, training.max_grad_norm)
    rate = learning_rate_at(step, total, training)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    if math.isfinite(loss) and math.isfinite(grad_norm):
        optimizer.step()
    return StepDone(step + 1, (step + 1) / steps_per_epoch(training, len(setup.train)), loss, rate, grad_norm,
                    tokens, supervised, time.perf_counter() - started, psutil.Process().memory_info().rss,
                    gpu_peak_bytes(setup.device) if setup.device.type == "cuda" else 0)


def rows_of(setup: Setup, step: int) -> list[EncodedRow]:
    """The rows of `step` (from 0), on all ranks together.

    They are not read ahead while the step before computes: with their packing that takes less than a millisecond for
    eight rows out of 100,000 (docs/performance.md).
    """
    training = setup.config.training
    chosen = step_rows(step, len(setup.train), training.batch_size * training.gradient_accumulation, training.seed)
    return [setup.train[index] for index in chosen]


def _accumulate(setup: Setup, rows: Sequence[EncodedRow], supervised: int,
                control: Control) -> tuple[float, int, int] | None:
    """Add up the gradients of this rank's share of `rows`: (loss, tokens, labels); None where a stop came in between.

    The loss is that of `supervised` tokens.
    """
    prefix = share_prefix(setup.model, setup.ranks.share(rows), setup.device) if setup.shares_prefix else None
    try:
        return _add_up(setup, rows, supervised, control, prefix)
    finally:
        if prefix:
            prefix.drop()


def _add_up(setup: Setup, rows: Sequence[EncodedRow], supervised: int, control: Control,
            prefix: SharedPrefix | None) -> tuple[float, int, int] | None:
    loss, tokens, labels = 0.0, 0, 0
    for batch in setup.ranks.batches(rows, setup.config.training.batch_size, prefix.pack if prefix else setup.batches):
        control.wait_while_paused()
        if control.stop_requested:
            return None
        summed = setup.summed_loss(setup.model, batch.to(setup.device))
        (summed / supervised).backward()
        loss += float(summed.detach()) / supervised
        del summed  # the remains of its graph would lie between what the next forward pass keeps
        tokens += batch.tokens
        labels += len(batch.labels)
    if prefix:
        prefix.backward()
    return loss, tokens, labels


def _clip(optimizer: torch.optim.Optimizer, largest: float) -> float:
    """Shorten the gradient to `largest` (0: leave it); returns its norm before."""
    return float(torch.nn.utils.clip_grad_norm_(_parameters(optimizer), largest or math.inf))


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
