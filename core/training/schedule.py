"""How many steps a run has, and the learning rate of each."""

import math

from core.config import TrainingConfig


def total_steps(training: TrainingConfig, rows: int) -> int:
    """Optimizer steps of the whole run over `rows` training rows."""
    steps = max(1, math.ceil(training.epochs * steps_per_epoch(training, rows) - 1e-9))
    return min(steps, training.max_steps) if training.max_steps else steps


def steps_per_epoch(training: TrainingConfig, rows: int) -> int:
    """Optimizer steps in which every row is seen once."""
    return -(-rows // (training.batch_size * training.gradient_accumulation))


def learning_rate_at(step: int, total: int, training: TrainingConfig) -> float:
    """Learning rate of `step` (from 0): a linear rise over the warm-up, then the chosen fall to zero at `total`.

    The first step of the warm-up already moves; the rise reaches the full rate at its last step.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    passed = (step - training.warmup_steps) / max(1, total - training.warmup_steps)
    if training.schedule == "constant":
        factor = 1.0
    elif training.schedule == "linear":
        factor = 1.0 - passed
    else:
        factor = 0.5 * (1.0 + math.cos(math.pi * passed))
    return training.learning_rate * factor
