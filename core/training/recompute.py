"""Activation checkpointing (arXiv 1604.06174): a layer keeps what enters it and is computed again for the backward.

The gradients are the same to the bit; a step takes about a third longer, and needs the memory of one layer.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from core.training.frozen_part import decoder_layers


def recompute_layers(model: PreTrainedModel) -> bool:
    """Let every decoder layer of `model` be computed again in the backward pass; False where they are not known."""
    layers = decoder_layers(model)
    for layer in layers or ():
        layer.forward = _recomputed(layer.forward)  # within the call: what a sharded layer does around it stays outside
    return layers is not None


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def compute(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return compute
