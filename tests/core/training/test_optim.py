"""The optimizer of a run."""

import torch
from torch import nn

from core.config import RunConfig
from core.training.optim import make_optimizer


def test_a_step_is_that_of_plain_adamw_and_counts_as_a_change() -> None:
    """DoRA computes its norm anew only where a parameter has another version."""
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    ours, plain, still = (nn.Parameter(start.clone()) for _ in range(3))
    config = RunConfig()
    optimizer = make_optimizer([{"params": [ours, still]}], config, torch.device("cpu"))
    reference = torch.optim.AdamW([plain], lr=config.training.learning_rate, weight_decay=0.0, fused=False)
    for _ in range(3):
        before = ours._version
        ours.grad, plain.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
        assert ours._version > before
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)
    assert torch.equal(still, start) and still._version == 0
