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

    @torch.no_grad()
    def norm(self) -> Tensor:
        """||W + s B A|| by rows, (out,)."""
        lora_a, lora_b = self.lora_a.float(), self.lora_b.float()
        crossed = ((self._rows().float() @ lora_a.T) * lora_b).sum(dim=1)  # <W, B A> by rows
        update = ((lora_b @ (lora_a @ lora_a.T)) * lora_b).sum(dim=1)  # ||B A||² by rows
        square = self._weight_square() + 2 * self.scale * crossed + self.scale ** 2 * update
        return square.clamp_min(0).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of the base."""
        if not self.enabled:
            return self.base(x)
        result = self.base(x)
        if self.bias is not None:
            result = result - self.bias
        dropped = x.to(self.lora_a.dtype)
        if self.training and self.dropout > 0:
            dropped = F.dropout(dropped, self.dropout)
        update = self.scale * F.linear(F.linear(dropped, self.lora_a), self.lora_b)
        share = self.magnitude / self.norm()  # (out,)
        result = (share * (result.to(update.dtype) + update)).to(result.dtype)
        return result if self.bias is None else result + self.bias


class Dora(Lora):
    """LoRA with a learned length of every row."""

    kind: ClassVar[type[LoraLayer]] = DoraLayer

    def groups(self, model: PreTrainedModel) -> list[ParameterGroup]:
        """A, B and the magnitudes."""
        magnitudes = {f"{name}.magnitude": layer.magnitude for name, layer in lora_layers(model).items()
                      if isinstance(layer, DoraLayer)}
        return [*super().groups(model), ParameterGroup(magnitudes)]
