"""LoRA layers for what is not a linear map of the last dimension: embeddings, convolutions, a tied head."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.lora.layers import LoraLayer
from core.lora.method import AdapterModule
from core.lora.token_rows import embedding_scale

Convolution = nn.Conv1d | nn.Conv2d
_CONVOLVE = {1: F.conv1d, 2: F.conv2d}


class LoraEmbedding(LoraLayer):
    """An embedding (V, d) with an update: the row of token t is W[t] + s B A[:, t].

    Shapes: lora_a (r, V), zero at the start; lora_b (d, r), drawn normal, as loralib's Embedding does.
    """

    def __init__(self, base: nn.Embedding, rank: int, alpha: float, dropout: float = 0.0,
                 generator: torch.Generator | None = None) -> None:
        AdapterModule.__init__(self)
        self.base = base
        self.in_features, self.out_features = base.weight.shape
        self.scale = alpha / rank
        self.dropout = dropout  # of no use here: there is no input that could be dropped
        self.enabled = True
        device = self.weight.device
        self.lora_a = nn.Parameter(torch.zeros(rank, self.in_features, device=device))
        self.lora_b = nn.Parameter(torch.empty(self.out_features, rank).normal_(generator=generator).to(device))

    @property
    def bias(self) -> None:
        """An embedding has none."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Token ids (...) -> (..., d), in the dtype of the base."""
        result = self.base(x)
        if not self.enabled:
            return result
        padding = self.base.padding_idx
        low = F.embedding(x, self.lora_a.T, padding if isinstance(padding, int) else None)  # (..., r)
        update = self.scale * F.linear(low, self.lora_b)
        scale = embedding_scale(self.base)
        if scale is not None:
            update = update * scale.to(update)
        return result + update.to(result.dtype)

    def peft_tensors(self) -> dict[str, Tensor]:
        """What an adapter file holds of this layer, by PEFT's names below the module's."""
        return {"lora_embedding_A": self.lora_a, "lora_embedding_B": self.lora_b}


class TiedLoraHead(LoraLayer):
    """An output head that shares the embedding's weight and its update: W + s (B A)ᵀ with the embedding's B and A.

    It has no parameters of its own.
    """

    def __init__(self, base: nn.Linear, embedding: LoraEmbedding) -> None:
        AdapterModule.__init__(self)
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.dropout = 0.0
        self.enabled = True
        self._embedding = (embedding,)  # in a tuple: as an attribute it would be a part of this module

    @property
    def embedding(self) -> LoraEmbedding:
        """The layer whose update it shares."""
        return self._embedding[0]

    @property
    def lora_a(self) -> Tensor:  # type: ignore[override]
        """(r, d): the embedding's B."""
        return self._embedding[0].lora_b.T

    @property
    def lora_b(self) -> Tensor:  # type: ignore[override]
        """(V, r): the embedding's A."""
        return self._embedding[0].lora_a.T

    @property
    def scale(self) -> float:  # type: ignore[override]
        """The embedding's."""
        return self._embedding[0].scale


class LoraConvolution(LoraLayer):
    """A convolution with an update: a convolution of the same form into r channels, then one of size 1.

    Shapes: lora_a (r, in, k, …), lora_b (out, r, 1, …).

    Raises:
        TypeError: see `unadaptable`.
    """

    def __init__(self, base: Convolution, rank: int, alpha: float, dropout: float = 0.0,
                 generator: torch.Generator | None = None) -> None:
        if reason := unadaptable(base):
            raise TypeError(reason)
        AdapterModule.__init__(self)
        self.base = base
        self.kernel = tuple(base.kernel_size)
        self.in_features, self.out_features = base.in_channels * math.prod(self.kernel), base.out_channels
        self.scale = alpha / rank
        self.dropout = dropout
        self.enabled = True
        device = self.weight.device
        bound = 1 / math.sqrt(self.in_features)
        lora_a = torch.empty(rank, base.in_channels, *self.kernel).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(lora_a.to(device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_channels, rank, *(1 for _ in self.kernel), device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, …) -> (B, out, …), in the dtype of the base."""
        result = self.base(x)
        if not self.enabled:
            return result
        dropped = x.to(self.lora_a.dtype)
        if self.training and self.dropout > 0:
            dropped = F.dropout(dropped, self.dropout)
        base = self.base
        assert isinstance(base, Convolution)
        convolve = _CONVOLVE[len(self.kernel)]
        low = convolve(dropped, self.lora_a, None, base.stride, base.padding, base.dilation)
        return result + (self.scale * convolve(low, self.lora_b)).to(result.dtype)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """(alpha / rank) B A in the shape of the weight, (out, in, k, …), in fp32."""
        product = self.lora_b.float().flatten(1) @ self.lora_a.float().flatten(1)
        return (self.scale * product).reshape(self.weight.shape)


def unadaptable(base: Convolution) -> str:
    """Why a convolution can have no update; "" where it can."""
    if base.groups != 1:
        return "a convolution in groups has no update of low rank over all channels"
    return "" if base.padding_mode == "zeros" else f"the padding {base.padding_mode} of this convolution is not known"


def kind_for(base: nn.Module, kind: type[LoraLayer]) -> type[LoraLayer]:
    """The layer that puts LoRA on `base`; other methods adapt linear layers only, which their layer checks."""
    if kind is LoraLayer and isinstance(base, nn.Embedding):
        return LoraEmbedding
    if kind is LoraLayer and isinstance(base, Convolution):
        return LoraConvolution
    return kind
