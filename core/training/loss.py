"""Cross-entropy where there is a label, without ever holding all logits at once.

Each chunk's logits are turned into the gradients of the hidden states, and of the head where it is
trained, while they are there, and are then gone. A frozen head on the CPU needs no chunks: `one_pass_loss`.
"""

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.data.batching import Batch
from core.estimate import CHUNK_LOGITS
from core.training import one_pass_loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
                softcap: float | None) -> Tensor:
        if one_pass_loss.fits(hidden, weight) and not any(ctx.needs_input_grad[1:3]):
            total, grad = one_pass_loss.one_pass_cross_entropy(hidden, weight, bias, labels, softcap,
                                                               ctx.needs_input_grad[0])
            ctx.save_for_backward(grad, None, None)
            return total
        chunks = math.ceil(len(labels) / max(1, CHUNK_LOGITS // weight.shape[0]))
        rows = math.ceil(len(labels) / max(1, chunks)) or 1  # alike: a small rest is a slow product
        total = hidden.new_zeros((), dtype=torch.float32)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        learns = any(ctx.needs_input_grad[:3])
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = F.linear(hidden[part], weight, bias).float()  # (rows, V)
            if softcap is not None:
                logits.div_(softcap).tanh_().mul_(softcap)
            slope = None if softcap is None or not learns else 1 - (logits / softcap).square()
            log_sum = torch.logsumexp(logits, dim=-1)
            total += (log_sum - logits.gather(1, labels[part, None])[:, 0]).sum()
            if not learns:
                continue
            # d loss / d logits = softmax - one_hot, written over the logits
            logits.sub_(log_sum[:, None]).exp_()
            logits.scatter_add_(1, labels[part, None], logits.new_full((len(logits), 1), -1.0))
            if slope is not None:
                logits.mul_(slope)
            logits = logits.to(weight.dtype)
            if grad is not None:
                grad[part] = logits @ weight
            if grad_weight is not None:
                grad_weight.addmm_(logits.T, hidden[part])
            if grad_bias is not None:
                grad_bias += logits.sum(dim=0)
        ctx.save_for_backward(grad, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if grad is None else grad * grad_outputs[0].to(grad.dtype) for grad in ctx.saved_tensors]
        return *found, None, None


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
                          softcap: float | None = None) -> Tensor:
    """Summed cross-entropy of `softcap·tanh(hidden Wᵀ + b)/softcap` against `labels`, in fp32.

    Args:
        hidden: (S, d) states that predict.
        weight: (V, d), of the head; it may be trained.
        bias: (V,) or None.
        labels: (S,) token ids.
        softcap: bound of the logits (Gemma 2), or None.
    """
    result = _ChunkedCrossEntropy.apply(hidden, weight, bias, labels, softcap)
    assert isinstance(result, Tensor)
    return result


class SummedLoss(Protocol):
    """Summed loss over the supervised tokens of a batch; divided by their number it is the loss we show."""

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss as a scalar in fp32."""
        ...


def direct_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The loss through the model's own forward pass: right for every family, holds all logits."""
    logits = model(**model_inputs(batch)).logits  # (B, T, V)
    chosen = logits.flatten(0, 1)[batch.predicting].float()
    return F.cross_entropy(chosen, batch.labels, reduction="sum")


def chunked_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The loss through the body of the model and a chunked head, only where a token is supervised."""
    hidden = model.base_model(**model_inputs(batch)).last_hidden_state  # (B, T, d)
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    softcap = getattr(model.config, "final_logit_softcapping", None)
    chosen = hidden.flatten(0, 1)[batch.predicting]
    scale = _logit_scale(model)
    if scale != 1.0 and head.bias is None:
        chosen = chosen * scale
    return chunked_cross_entropy(chosen, head.weight, head.bias, batch.labels, softcap)


def _logit_scale(model: PreTrainedModel) -> float:
    """What the logits are multiplied with in Cohere's models; Granite's are divided."""
    times, by = (getattr(model.config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
    return float(times) / float(by)


def model_inputs(batch: Batch) -> dict[str, Any]:
    """What a model is called with."""
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids, "position_ids": batch.position_ids,
        "attention_mask": batch.attention_mask, "use_cache": False,
    }
    if batch.boundaries:
        inputs["boundaries"] = batch.boundaries
    return {**inputs, **batch.given}
