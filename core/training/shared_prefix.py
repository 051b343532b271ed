"""What all rows of a step begin with (a system prompt, an instruction) is computed once, not again in every row.

In a causal model a token depends only on those before it, so the keys and values of a common beginning are the same
in all rows. They are computed once; the rest of each row attends to them. In the backward pass their gradients add
up over all rows and then go through the beginning, once. Loss and gradients are those of whole rows, up to the order
of additions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.data.batching import Batch, pack
from core.data.template import EncodedRow
from core.estimate import pack_tokens

KeyValue = tuple[Tensor, Tensor]  # each (1, key_value_heads, P, head_dim)
_LEAST_ON_GPU = 32  # tokens: every row costs some small kernels besides
_LEAST_SAVED_ON_CPU = 96  # tokens in a step; one more, short pass costs as much as about 60


class SharedPrefix:
    """Keys and values of the tokens that some rows begin with, by layer.

    Args:
        length: how many tokens these are (P).
        most: tokens that one pass may have.
    """

    def __init__(self, length: int, most: int) -> None:
        self.length = length
        self._most = most
        self._computed: dict[int, KeyValue] = {}  # with the graph behind them
        self._leaves: dict[int, KeyValue] = {}  # in fp32, as the gradients of many rows are added up there
        self._records = False

    def compute(self, model: PreTrainedModel, ids: Tensor) -> None:
        """Run the body of `model` over the prefix, within `segmented_attention`; `ids` are (P,)."""
        positions = torch.arange(self.length, device=ids.device)
        self._records = True
        model.base_model(input_ids=ids[None], position_ids=positions[None], attention_mask=None, use_cache=False,
                         boundaries=(0, self.length), keep_in=self)
        self._records = False  # layers that are computed a second time for the backward pass tell it again
        self._leaves = {layer: _leaves(both) for layer, both in self._computed.items()}

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """What the attention of a layer tells of the prefix itself."""
        if self._records:
            self._computed[layer] = key, value

    def of(self, layer: int) -> KeyValue:
        """Keys and values that the rest of every row attends to, in fp32."""
        return self._leaves[layer]

    def pack(self, rows: Sequence[EncodedRow]) -> list[Batch]:
        """`rows` without the prefix, end to end, in as many batches as their memory allows beside it."""
        return pack(rows, self._most - self.length, skipped=self.length, given={"shared_prefix": self})

    def backward(self) -> None:
        """After the backward passes of all batches: take what they have left at the prefix through it."""
        pairs = [(made, leaf.grad.to(made.dtype)) for layer, both in self._computed.items()
                 for made, leaf in zip(both, self._leaves[layer], strict=True)
                 if made.requires_grad and leaf.grad is not None]
        if pairs:
            made, gradients = zip(*pairs, strict=True)
            torch.autograd.backward(made, gradients)

    def drop(self) -> None:
        """Let go of the graph, which with activation checkpointing holds this object in turn."""
        self._computed.clear()
        self._leaves.clear()


def _leaves(both: KeyValue) -> KeyValue:
    key, value = (states.detach().float().requires_grad_(states.requires_grad) for states in both)
    return key, value


def share_prefix(model: PreTrainedModel, rows: Sequence[EncodedRow], device: torch.device) -> SharedPrefix | None:
    """The prefix of `rows`, computed within `segmented_attention`; None where sharing it would save too little."""
    length = worth_sharing(rows, device)
    return compute_prefix(model, rows, length, device) if length else None


def compute_prefix(model: PreTrainedModel, rows: Sequence[EncodedRow], length: int,
                   device: torch.device) -> SharedPrefix:
    """The first `length` tokens of `rows`, which are the same in all of them."""
    most = max(pack_tokens(device.type == "cuda"), *(len(row) for row in rows))
    prefix = SharedPrefix(length, most)
    prefix.compute(model, torch.from_numpy(rows[0].input_ids[:length].astype(np.int64)).to(device))
    return prefix


def shared_length(rows: Sequence[EncodedRow]) -> int:
    """How many tokens all of `rows` begin with, before the first that predicts one; 0 for a single row."""
    if len(rows) < 2:
        return 0
    first = rows[0].input_ids
    length = min(_before_prediction(row) for row in rows)
    for row in rows[1:]:
        differs = np.flatnonzero(first[:length] != row.input_ids[:length])
        length = int(differs[0]) if len(differs) else length
    return length


def worth_sharing(rows: Sequence[EncodedRow], device: torch.device) -> int:
    """`shared_length` where it saves more than one more pass costs, else 0.

    On a GPU a pass costs nearly the same with few tokens as with many.
    """
    length = shared_length(rows)
    saved = length * (len(rows) - 1)
    if device.type == "cpu":
        return length if saved >= _LEAST_SAVED_ON_CPU else 0
    return length if length >= _LEAST_ON_GPU and saved >= pack_tokens(on_cuda=True) else 0


def _before_prediction(row: EncodedRow) -> int:
    """Tokens before the one that predicts the first supervised token."""
    supervised = np.flatnonzero(row.supervised)
    return (int(supervised[0]) if len(supervised) else len(row)) - 1
