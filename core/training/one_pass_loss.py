"""Cross-entropy behind a frozen output layer in one pass over the vocabulary, on the CPU in fp32.

As attention is computed in flash attention (arXiv 2205.14135): the exponentials of a block of the vocabulary are taken
against a maximum that is good enough so far, added up, and multiplied with the block's weights at once, while they
lie in the processor's cache; the division by their sum comes at the end. So the logits are never held. The label's own
exponential is kept apart, so that the gradient of a token that is known almost surely does not drown in rounding.
"""

import torch
from torch import Tensor

from core.memory import VOCABULARY_BLOCK

_ROOM = 20.0  # exponents above the maximum that is subtracted; e^20 is far from the end of fp32


def fits(hidden: Tensor, weight: Tensor) -> bool:
    """True where this is the quicker way: on the CPU in fp32."""
    return hidden.device.type == "cpu" and hidden.dtype == weight.dtype == torch.float32


@torch.no_grad()
def one_pass_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
                           softcap: float | None, learns: bool) -> tuple[Tensor, Tensor | None]:
    """The summed loss, and its gradient by the states where `learns`.

    Args:
        hidden: (S, d) states that predict.
        weight: (V, d), frozen.
        bias: (V,) or None, frozen.
        labels: (S,) token ids.
        softcap: bound of the logits, or None.
        learns: a gradient is wanted.

    Returns:
        a scalar, and (S, d) or None.
    """
    wanted = weight[labels]  # (S, d)
    chosen = (hidden * wanted).sum(dim=1, keepdim=True)  # logits of the labels, (S, 1)
    if bias is not None:
        chosen.add_(bias[labels, None])
    own_slope = _cap(chosen, softcap)
    top = chosen.clone()  # what is subtracted from the logits of each state
    others = torch.zeros_like(top)  # sum of the exponentials of all tokens but the label
    grad = torch.zeros_like(hidden) if learns else None
    space = hidden.new_empty(len(hidden) * min(VOCABULARY_BLOCK, len(weight)))
    for start, rows in _label_rows(labels, len(weight)):
        part = weight[start:start + VOCABULARY_BLOCK]
        logits = torch.mm(hidden, part.T, out=space[:len(hidden) * len(part)].view(len(hidden), len(part)))
        if bias is not None:
            logits.add_(bias[start:start + VOCABULARY_BLOCK])
        slope = _cap(logits, softcap)
        logits[rows, labels[rows] - start] = -torch.inf
        highest = logits.amax(dim=1, keepdim=True)
        if bool((highest > top + _ROOM).any()):
            higher = torch.maximum(top, highest)
            for kept in (others,) if grad is None else (others, grad):
                kept.mul_((top - higher).exp_())
            top = higher
        exponentials = logits.sub_(top).exp_()
        others += exponentials.sum(dim=1, keepdim=True)
        if grad is not None:
            grad.addmm_(exponentials if slope is None else exponentials.mul_(slope), part)
    own = (chosen - top).exp_()
    if grad is not None:
        wanted.mul_(others if own_slope is None else others * own_slope)
        grad.sub_(wanted).div_(others + own)
    # log((others + own) / own); log1p where the label is nearly sure
    loss = torch.where(own > others, torch.log1p(others / own), (others + own).log() + top - chosen)
    return loss.sum(), grad


def _label_rows(labels: Tensor, vocabulary: int) -> list[tuple[int, Tensor]]:
    """The first token of each block, and the rows whose label lies in it."""
    starts = list(range(0, vocabulary, VOCABULARY_BLOCK))
    counts = torch.bincount(labels // VOCABULARY_BLOCK, minlength=len(starts)).tolist()
    return list(zip(starts, labels.argsort().split(counts), strict=True))


def _cap(logits: Tensor, softcap: float | None) -> Tensor | None:
    """softcap · tanh(x / softcap) in the place of x, and its slope; nothing where there is no softcap."""
    if softcap is None:
        return None
    slope = 1 - logits.div_(softcap).tanh_().square()
    logits.mul_(softcap)
    return slope
