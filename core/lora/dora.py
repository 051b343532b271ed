"""DoRA: the direction of every row of W + s B A, and its length m, are learned apart (arXiv 2402.09353).

    h = m / ||W + s B A|| · (W + s B A) x + b      the norm is taken by rows and held constant for the gradient

The norm comes from ||W||² + 2 s <W, B A> + s² ||B A||², row by row, with ||W||² computed once: B A is
never formed.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.lora.fused_dora import fused_dora_linear
from core.lora.inject import lora_layers
from core.lora.layers import LoraLayer
from core.lora.lora import Lora
from core.lora.method import ParameterGroup


class DoraLayer(LoraLayer):
    """A LoraLayer with a trained magnitude.

    Shapes: magnitude (out,), in fp32; at the start ||W|| by rows, so that the layer gives what its base gives.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("weight_square", self._rows().float().square().sum(dim=1), persistent=False)
        self.magnitude = nn.Parameter(self._weight_square().sqrt())
        self._norm_of: tuple[Any, ...] = ()  # what the kept norm was computed from
        self._norm: Tensor | None = None

    def peft_tensors(self) -> dict[str, Tensor]:
        """What an adapter file holds of this layer, by PEFT's names below the module's."""
        return {**super().peft_tensors(), "lora_magnitude_vector": self.magnitude}

    def _weight_square(self) -> Tensor:
        square = self.get_buffer("weight_square")
        assert isinstance(square, Tensor)
        return square

    def _rows(self) -> Tensor:
        """The frozen weight as (out, in)."""
        return self.weight.T if isinstance(self.base, Conv1D) else self.weight

    def norm(self) -> Tensor:
        """||W + s B A|| by rows, (out,); computed anew when A or B has changed, so once in a step."""
        parts = (self.lora_a, self.lora_b, *(self.start() or ()))
        now = (self.scale, *[(part.data_ptr(), part.dtype, part._version) for part in parts])
        if self._norm is None or now != self._norm_of:
            # a tensor made in inference mode could not be used in a later step of training
            with torch.inference_mode(False), torch.no_grad():
                self._norm, self._norm_of = self._computed_norm(), now
        return self._norm

    def _computed_norm(self) -> Tensor:
        lora_a, lora_b = self.right(), self.left()
        crossed = ((self._rows().to(lora_a.dtype) @ lora_a.T) * lora_b).sum(dim=1)  # <W, B A> by rows
        update = ((lora_b @ (lora_a @ lora_a.T)) * lora_b).sum(dim=1)  # ||B A||² by rows
        square = self._weight_square() + 2 * self.scale * crossed + self.scale ** 2 * update
        return square.clamp_min(0).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of the base."""
        if not self.enabled:
            return self.base(x)
        if self.training and self.dropout > 0:
            return self._dropping_forward(x)
        trained_bias = self.bias is not None and self.bias.requires_grad
        if x.dtype == self.weight.dtype == self.lora_a.dtype and torch.is_grad_enabled() and not trained_bias:
            return fused_dora_linear(x, self._rows(), self.bias, self.right(), self.left(), self.magnitude,
                                     self.norm(), self.scale)
        straight = self.base(x)
        if self.bias is not None:
            straight = straight - self.bias
        update = self.scale * F.linear(F.linear(x.to(self.lora_a.dtype), self.right()), self.left())
        result = (self.magnitude / self.norm() * (straight.to(update.dtype) + update)).to(straight.dtype)
        return result if self.bias is None else result + self.bias

    def _dropping_forward(self, x: Tensor) -> Tensor:
        """What DoRA adds to the base sees the dropped input, in its part of W as in that of B A, as in PEFT."""
        whole = x.to(self.lora_a.dtype)
        dropped = F.dropout(whole, self.dropout)
        straight = F.linear(dropped.to(self.weight.dtype), self._rows()).to(dropped.dtype)
        update = self.scale * F.linear(F.linear(dropped, self.lora_a), self.lora_b)
        share = self.magnitude / self.norm()  # (out,)
        added = (share - 1) * straight + share * update
        start = self.start()
        if start is not None:  # a part of W, so it stands beside the base's output and in `straight`
            start_a, start_b = start
            added = added - self.scale * (F.linear(F.linear(whole, start_a), start_b)
                                          + (share - 1) * F.linear(F.linear(dropped, start_a), start_b))
        result = self.base(x)
        return result + added.to(result.dtype)


class Dora(Lora):
    """LoRA with a learned length of every row."""

    kind: ClassVar[type[LoraLayer]] = DoraLayer

    def groups(self, model: PreTrainedModel) -> list[ParameterGroup]:
        """A, B and the magnitudes, which learn as fast as B (as in PEFT's LoRA+)."""
        magnitudes = {f"{name}.magnitude": layer.magnitude for name, layer in lora_layers(model).items()
                      if isinstance(layer, DoraLayer)}
        return [*super().groups(model), ParameterGroup(magnitudes, rate=self.adapter.lora_plus_ratio)]
