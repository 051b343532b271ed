"""Single tokens whose rows of the embedding, and of the output head, are trained alone.

The rows take the place of the base's own (PEFT's trainable_token_indices); a token above the base's
vocabulary makes it larger. The base's tensors are not touched: what is looked up or computed for those
tokens is put over what the base gives.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.lora.method import AdapterModule
from core.lora.whole import base_name


class _RowsBeside(AdapterModule):
    """A frozen layer with own rows for some tokens beside it."""

    def __init__(self, base: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        self.indices = tuple(indices)
        self.enabled = True

    @property
    def _own(self) -> Tensor:
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight


class TokenEmbedding(_RowsBeside):
    """An embedding with own rows for some tokens.

    Args:
        base: the frozen embedding, its weight (V, d).
        indices: the tokens, each once; above V - 1 they make the vocabulary larger.
        values: their rows, (n, d).

    Shapes: token ids (...) -> (..., d), in the dtype of the base.
    """

    def __init__(self, base: nn.Module, indices: Sequence[int], values: Tensor) -> None:
        super().__init__(base, indices)
        self.values = nn.Parameter(values.detach().float().clone().to(self._own.device))
        place = torch.full((self.num_embeddings,), -1, dtype=torch.long)
        place[list(indices)] = torch.arange(len(indices))
        self.register_buffer("place", place.to(self._own.device), persistent=False)

    @property
    def num_embeddings(self) -> int:
        """Rows, the new ones included."""
        return max(self._own.shape[0], max(self.indices) + 1)

    @property
    def weight(self) -> Tensor:
        """All rows, (V', d); some models and checks read them past `forward`."""
        return with_rows(self._own, self.indices, self.values) if self.enabled else self._own

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., d)."""
        if not self.enabled:
            return self.base(ids)
        place = self.get_buffer("place")[ids]
        result = self.base(ids.clamp_max(self._own.shape[0] - 1))
        mine = place >= 0
        rows = F.embedding(place[mine], self.values).to(result.dtype)
        scale = embedding_scale(self.base)
        if scale is not None:
            rows = rows * scale.to(rows)
        return result.index_put((mine,), rows)


class TokenHead(_RowsBeside):
    """An output head with own rows for some tokens.

    Args:
        base: the frozen linear layer, its weight (V, d).
        indices: the tokens.
        values: their rows, (n, d), as a parameter of this head; None takes those of `tied`.
        tied: the embedding whose rows are shared.

    Shapes: (..., d) -> (..., V').
    """

    def __init__(self, base: nn.Module, indices: Sequence[int], values: Tensor | None,
                 tied: TokenEmbedding | None = None) -> None:
        super().__init__(base, indices)
        self._tied = (tied,)  # in a tuple: as an attribute its rows would be parameters of this module too
        self.values = None if values is None else nn.Parameter(values.detach().float().clone().to(self._own.device))
        self.register_buffer("columns", torch.tensor(self.indices, device=self._own.device), persistent=False)

    @property
    def rows(self) -> Tensor:
        """(n, d): own ones, or those of the embedding."""
        if self.values is not None:
            return self.values
        (tied,) = self._tied
        assert tied is not None
        return tied.values

    @property
    def weight(self) -> Tensor:
        """All rows, (V', d)."""
        return with_rows(self._own, self.indices, self.rows) if self.enabled else self._own

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, (V,)."""
        bias = self.base.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., V')."""
        logits = self.base(x)
        if not self.enabled:
            return logits
        own = F.linear(x.to(self.rows.dtype), self.rows)
        missing = max(self.indices) + 1 - logits.shape[-1]
        if missing > 0:
            logits = F.pad(logits, (0, missing))
        columns = self.get_buffer("columns")
        if self.bias is not None:
            own = own + F.pad(self.bias, (0, max(missing, 0)))[columns]
        return logits.index_copy(-1, columns, own.to(logits.dtype))


def with_rows(weight: Tensor, indices: Sequence[int], values: Tensor) -> Tensor:
    """`weight` (V, d) with `values` (n, d) at `indices`; longer where one lies above V - 1, its gaps zero."""
    missing = max(indices) + 1 - weight.shape[0]
    if missing > 0:
        weight = F.pad(weight, (0, 0, 0, missing))
    return weight.index_copy(0, torch.tensor(list(indices), device=weight.device), values.to(weight.dtype))


def embedding_scale(base: nn.Module) -> Tensor | None:
    """What some families (Gemma 3) multiply the rows of their embedding by, or None."""
    scale = getattr(base, "embed_scale", None)
    return None if scale is None else torch.as_tensor(scale)


def token_modules(model: nn.Module) -> dict[str, TokenEmbedding | TokenHead]:
    """Every embedding and head with own rows, by its name in the base model."""
    return {base_name(name): module for name, module in model.named_modules()
            if isinstance(module, TokenEmbedding | TokenHead)}


def put_rows(model: nn.Module, name: str, wrapper: TokenEmbedding | TokenHead) -> None:
    """Put `wrapper` in the place of the module called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, wrapper)


def take_out_rows(model: nn.Module) -> None:
    """Put the base's embedding and head back."""
    for name, module in token_modules(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.base)
