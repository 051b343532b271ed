"""Keys and values of many rows that are answered at once: a slot each, in buffers that are used again.

The tokens of all rows lie end to end in one forward pass: one of each row that is being answered, then the prompts
that enter. So nothing is padded, and rows come and go while the others go on (continuous batching, as in Orca, OSDI
2022). Registered with transformers as one more attention implementation, which keeps the cache itself.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.training.segments import attend_in_groups, own_attention

NAME = "slots"


class Slots:
    """The rows that are being answered lie in the first slots, without gaps.

    Args:
        rows: most rows at once.
        capacity: most tokens of a row, prompt and answer.
        device: of the model.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
        self._rows, self._capacity, self._device = rows, capacity, device
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}  # of a layer: keys, values (rows, heads, capacity, dim)
        self._lengths: list[int] = []  # tokens in each slot in use
        self._decoding = 0
        self._segments: list[tuple[int, int, int]] = []
        self._places = torch.empty(0)
        self._masks: dict[int | None, Tensor] = {}

    @property
    def free(self) -> int:
        """Slots without a row."""
        return self._rows - len(self._lengths)

    def step(self, tokens: Sequence[int], prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The arguments of a forward pass over the next token of every row and the prompts that enter.

        Its logits (1, rows + prompts, V) are those of the last position of each, in this order.
        """
        assert len(tokens) == len(self._lengths) and len(prompts) <= self.free
        self._decoding, self._segments, self._masks = len(tokens), [], {}
        self._places = torch.tensor(self._lengths, dtype=torch.long, device=self._device)  # of the new tokens
        ids, positions = list(tokens), list(self._lengths)
        self._lengths = [length + 1 for length in self._lengths]
        for prompt in prompts:
            self._segments.append((len(self._lengths), len(ids), len(ids) + len(prompt)))
            self._lengths.append(len(prompt))
            ids += prompt
            positions += range(len(prompt))
        last = [*range(self._decoding), *(end - 1 for _, _, end in self._segments)]
        laid = {"input_ids": [ids], "position_ids": [positions], "logits_to_keep": last}
        return {"use_cache": False, "attention_mask": None, "slots": self,
                **{name: torch.tensor(value, device=self._device) for name, value in laid.items()}}

    def leave(self, slot: int) -> None:
        """Take out the row of `slot`; the last row moves there."""
        last = len(self._lengths) - 1
        length = self._lengths[last]
        if slot != last:
            for buffers in self._buffers.values():
                for buffer in buffers:
                    buffer[slot, :, :length] = buffer[last, :, :length]
        self._lengths[slot] = length
        self._lengths.pop()

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None,
                  window: int | None) -> Tensor:
        """Keep the new keys and values and attend to those of the same row: (1, T, heads, head_dim).

        Shapes: query (1, heads, T, head_dim), key and value (1, key_value_heads, T, head_dim).
        """
        if layer not in self._buffers:  # zeros: what is masked must be finite
            self._buffers[layer] = (self._empty(key), self._empty(value))
        keys, values = self._buffers[layer]
        outputs = [self._decode(query, key, value, keys, values, scaling, window)] if self._decoding else []
        for slot, start, end in self._segments:
            q, k, v = (states[:, :, start:end] for states in (query, key, value))
            keys[slot, :, :end - start], values[slot, :, :end - start] = k[0], v[0]
            outputs.append(attend_in_groups(q, k, v, scaling, window, None))
        return torch.cat(outputs, dim=1)

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor,
                scaling: float | None, window: int | None) -> Tensor:
        """One token of each row. Heads that share a key are laid side by side as if they were tokens."""
        rows, heads = self._decoding, key.shape[1]
        slots = torch.arange(rows, device=self._device)
        keys[slots, :, self._places] = key[0, :, :rows].transpose(0, 1)
        values[slots, :, self._places] = value[0, :, :rows].transpose(0, 1)
        mask = self._mask(window, query.dtype)
        longest = mask.shape[-1]
        grouped = query[0, :, :rows].unflatten(0, (heads, -1)).permute(2, 0, 1, 3)  # (rows, heads, groups, head_dim)
        found = F.scaled_dot_product_attention(grouped, keys[:rows, :, :longest], values[:rows, :, :longest],
                                               attn_mask=mask, scale=scaling)
        return found.flatten(1, 2)[None]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(rows, 1, 1, longest): 0 where a row's new token sees, minus infinity elsewhere."""
        if window not in self._masks:
            longest = max(self._lengths[:self._decoding])
            distance = self._places[:, None] - torch.arange(longest, device=self._device)
            hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self._device).masked_fill_(hidden, -torch.inf)
            self._masks[window] = mask[:, None, None]
        return self._masks[window]

    def _empty(self, states: Tensor) -> Tensor:
        return states.new_zeros(self._rows, states.shape[1], self._capacity, states.shape[3])


def _slotted(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
             scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None,
             softcap: float | None = None, slots: Slots | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """See `Slots.attention`.

    Raises:
        NotImplementedError: a kind of attention that is not handled here; the caller then goes the plain way.
    """
    layer = getattr(module, "layer_idx", None)
    if slots is None or not isinstance(layer, int) or any(
            extra is not None for extra in (softcap, kwargs.get("s_aux"), kwargs.get("position_bias"))):
        raise NotImplementedError("this attention can not be computed in slots")
    return slots.attention(layer, query, key, value, scaling, sliding_window), None


@contextlib.contextmanager
def slotted_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` takes what `Slots.step` gives."""
    with own_attention(model, NAME, _slotted):
        yield
