"""The output layer on the CPU, where a plain product of some states with a whole vocabulary is slow.

Measured with torch 2.13 (MKL) on two AVX2 cores, 49,152 tokens of width 576 in fp32: for 192 states one product of
all columns ran at 68 GFLOP/s and blocks of 768 columns at 104; 8 states took 38 ms, 16 ms the other way round, as
weight times states. Elsewhere than in fp32 on the CPU it is the plain product.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.memory import VOCABULARY_BLOCK
from core.training.one_pass_loss import fits

_FEW_STATES = 16


@torch.no_grad()
def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden Wᵀ + b, without a gradient.

    Args:
        hidden: (n, d).
        weight: (V, d).
        bias: (V,) or None.

    Returns:
        (n, V).
    """
    if not fits(hidden, weight):
        return F.linear(hidden, weight, bias)
    if len(hidden) <= _FEW_STATES:
        logits = torch.mm(weight, hidden.T).T.contiguous()
    else:
        logits = hidden.new_empty(len(hidden), len(weight))
        for block, rows in zip(logits.split(VOCABULARY_BLOCK, dim=1), weight.split(VOCABULARY_BLOCK), strict=True):
            torch.mm(hidden, rows.T, out=block)
    return logits if bias is None else logits.add_(bias)


@contextlib.contextmanager
def quick_head(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` computes its logits so, where its output layer is a plain one and no gradient is
    asked for."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or "forward" in vars(head):  # an adapted one computes more
        yield
        return

    def forward(input: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return F.linear(input, head.weight, head.bias)
        return head_logits(input.flatten(0, -2), head.weight, head.bias).unflatten(0, input.shape[:-1])

    head.forward = forward  # of this one object; hooks are called as ever
    try:
        yield
    finally:
        del head.forward
