"""Norms of low-rank products from small matrices: B A itself is never formed."""

import math

from torch import Tensor

from core.lora.peft_keys import LoraPair


def product_norm(left: Tensor, right: Tensor) -> float:
    """||left right|| (Frobenius) for left (out, k) and right (k, in), in fp64.

    ||L R||² is the trace of (Lᵀ L) (R Rᵀ), two matrices of (k, k).
    """
    left, right = left.double(), right.double()
    return math.sqrt(max(0.0, float(((left.T @ left) * (right @ right.T)).sum())))


def delta_norm(pair: LoraPair) -> float:
    """||scale B A||."""
    return abs(pair.scale) * product_norm(pair.lora_b, pair.lora_a)
