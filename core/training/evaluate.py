"""Validation loss: mean over the supervised tokens of the held-out rows."""

import torch

from core.control import Control
from core.training.setup import Setup


@torch.no_grad()
def validation_loss(setup: Setup, control: Control) -> float | None:
    """Mean loss over supervised validation tokens; None where a stop came in between."""
    # module by module: within a base in eval mode, the adapter's layers are in training mode
    training = [module for module in setup.model.modules() if module.training]
    setup.model.eval()
    total, tokens = 0.0, 0
    try:
        for batch in setup.batches(setup.validation):
            control.wait_while_paused()
            if control.stop_requested:
                return None
            total += float(setup.summed_loss(setup.model, batch.to(setup.device)))
            tokens += len(batch.labels)
    finally:
        for module in training:
            module.training = True
    return total / tokens
