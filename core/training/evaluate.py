"""Validation loss: mean over the supervised tokens of the held-out rows."""

from collections.abc import Iterator

import torch

from core.control import Control
from core.data.batching import Batch
from core.training.setup import Setup
from core.training.shared_prefix import share_prefix

_ROWS_AT_ONCE = 4096


@torch.no_grad()
def validation_loss(setup: Setup, control: Control) -> float | None:
    """Mean loss over supervised validation tokens; None where a stop came in between."""
    # module by module: within a base in eval mode, the adapter's layers are in training mode
    training = [module for module in setup.model.modules() if module.training]
    setup.model.eval()
    total, tokens = 0.0, 0
    try:
        with setup.ranks.computing():
            for batch in _batches(setup):
                control.wait_while_paused()
                if control.stop_requested:
                    return None
                total += float(setup.summed_loss(setup.model, batch.to(setup.device)))
                tokens += len(batch.labels)
    finally:
        for module in training:
            module.training = True
    total, tokens = setup.ranks.sums(total, tokens)
    return total / tokens


def _batches(setup: Setup) -> Iterator[Batch]:
    """Of all validation rows, a part of them in memory at a time."""
    for first in range(0, len(setup.validation), _ROWS_AT_ONCE):
        rows = setup.validation[first:first + _ROWS_AT_ONCE]
        prefix = share_prefix(setup.model, setup.ranks.share(rows), setup.device) if setup.shares_prefix else None
        yield from setup.ranks.batches(rows, len(rows), prefix.pack if prefix else setup.batches)
