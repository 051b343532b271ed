"""The LoRA layer: a frozen linear map with a trained low-rank update beside it.

    h = W x + (alpha / rank) B A x          (arXiv 2106.09685, section 4.1)

A is drawn at random and B is zero, so the update is zero at the start.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from core.lora.fused import fused_lora_linear, widened_update
from core.lora.method import AdapterModule


class LoraLayer(AdapterModule):
    """Wraps one `nn.Linear` or `Conv1D`; only `lora_a` and `lora_b` are trained, in fp32.

    Args:
        base: the frozen layer; its weight is (out, in), for Conv1D (in, out).
        rank: inner dimension r.
        alpha: the update is scaled by alpha / rank.
        dropout: share of the adapter's input that is dropped in training.
        generator: draws A, uniform after Kaiming with a = sqrt(5), as the paper's code does.

    Shapes: lora_a (r, in), lora_b (out, r); input (..., in), output (..., out).
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = linear_shape(base)
        self.scale = alpha / rank
        self.dropout = dropout
        self.enabled = True
        device = self.weight.device
        lora_a = torch.empty(rank, self.in_features)
        # kaiming_uniform_ with a = sqrt(5) is this bound; written out because it must use our generator
        bound = 1 / math.sqrt(self.in_features)
        lora_a.uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(lora_a.to(device))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank, device=device))

    @property
    def weight(self) -> Tensor:
        """The frozen weight; some models read it past `forward`."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, if there is one."""
        bias = self.base.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    @property
    def rank(self) -> int:
        """Inner dimension r."""
        return self.lora_a.shape[0]

    def count_from_here(self, start_a: Tensor | None = None, start_b: Tensor | None = None) -> None:
        """Take the product of the present A and B, or of those given, off the update: s (B A - B0 A0).

        That is the same as to train beside the residual W - s B0 A0, but W itself is neither changed nor rounded.
        """
        held = (self.lora_a if start_a is None else start_a, self.lora_b if start_b is None else start_b)
        for name, tensor in zip(("start_a", "start_b"), held, strict=True):
            self.register_buffer(name, tensor.detach().to(self.lora_a.device, copy=True), persistent=False)

    def start(self) -> tuple[Tensor, Tensor] | None:
        """A0 (r, in) and B0 (out, r), whose product is taken off, if there are any."""
        start_a, start_b = self._buffers.get("start_a"), self._buffers.get("start_b")
        return None if start_a is None or start_b is None else (start_a, start_b)

    @property
    def written_rank(self) -> int:
        """The rank in an adapter file, where a start is a part of the update."""
        return self.rank if self.start() is None else 2 * self.rank

    def right(self) -> Tensor:
        """The right factor of the update, (r, in); with a start (2 r, in)."""
        start = self.start()
        return self.lora_a if start is None else torch.cat([self.lora_a, start[0]])

    def left(self) -> Tensor:
        """The left factor of the update, (out, r); with a start (out, 2 r)."""
        start = self.start()
        return self.lora_b if start is None else torch.cat([self.lora_b, -start[1]], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of the base."""
        if not self.enabled:
            return self.base(x)
        dropping = self.training and self.dropout > 0
        bias_is_trained = self.bias is not None and self.bias.requires_grad
        if not dropping and not bias_is_trained and x.dtype == self.weight.dtype == self.lora_a.dtype \
                and torch.is_grad_enabled():
            weight = self.weight.T if isinstance(self.base, Conv1D) else self.weight
            return fused_lora_linear(x, weight, self.bias, self.right(), self.left(), self.scale)
        if not dropping and x.dtype != self.lora_a.dtype and torch.is_grad_enabled():
            return self.base(x) + widened_update(x, self.right(), self.left(), self.scale)
        return self._plain_forward(x, dropping)

    def _plain_forward(self, x: Tensor, dropping: bool) -> Tensor:
        whole = x.to(self.lora_a.dtype)  # the adapter computes in fp32 over a 16-bit base
        start = self.start() if dropping else None
        dropped = F.dropout(whole, self.dropout) if dropping else whole
        if start is None:
            update = F.linear(F.linear(dropped, self.right()), self.left())
        else:  # the start stands for a part of W, whose input is never dropped
            update = F.linear(F.linear(dropped, self.lora_a), self.lora_b)
            update = update - F.linear(F.linear(whole, start[0]), start[1])
        result = self.base(x)
        return result + (self.scale * update).to(result.dtype)

    def peft_tensors(self) -> dict[str, Tensor]:
        """What an adapter file holds of this layer, by PEFT's names below the module's."""
        return {"lora_A.weight": self.right(), "lora_B.weight": self.left()}

    @torch.no_grad()
    def delta(self) -> Tensor:
        """(alpha / rank) B A as (out, in) in fp32, whatever the orientation of the base's weight."""
        return self.scale * (self.left().float() @ self.right().float())

    def extra_repr(self) -> str:
        """What `print(model)` shows of this layer."""
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of an `nn.Linear` or `Conv1D`.

    Raises:
        TypeError: any other layer.
    """
    if isinstance(layer, nn.Linear):
        if is_parametrized(layer, "weight"):  # a head whose vocabulary has grown
            return layer.weight.shape[1], layer.weight.shape[0]
        return layer.in_features, layer.out_features
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.weight.shape[1]
    raise TypeError(f"LoRA needs a linear layer, not {type(layer).__name__}")
