"""Attention over rows that are packed end to end: each row sees itself and nothing else.

Registered with transformers as one more attention implementation. It costs the sum of the rows'
own squares, where a block-diagonal mask would cost the square of the whole pack.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from core.training.shared_prefix import KeyValue, SharedPrefix
from core.training.varlen import attend_at_once, suits

NAME = "packed_segments"


def packed_segments(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None,
    softcap: float | None = None, boundaries: tuple[int, ...] = (),
    prefix_states: Sequence[tuple[Tensor, Tensor]] | None = None, shared_prefix: SharedPrefix | None = None,
    keep_in: SharedPrefix | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment, and to what stands before each of them where there is something.

    Args:
        query: (1, heads, T, head_dim).
        key, value: (1, key_value_heads, T, head_dim).
        boundaries: start of every segment and the end of the last.
        prefix_states: of every layer, trained keys and values, each (1, key_value_heads, P, head_dim).
        shared_prefix: tokens of the text that all segments go on from, behind the trained ones.
        keep_in: told of the keys and values, which are those of a shared prefix.

    Returns:
        (1, T, heads, head_dim) and None, as transformers expects.

    Raises:
        NotImplementedError: a kind of attention that is not handled here; the caller then pads instead.
    """
    if not boundaries or kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("this attention can not be computed in segments")
    before = _before(module, prefix_states, shared_prefix)
    if keep_in is not None:
        keep_in.keep(_layer_of(module), key, value)
    lengths = [end - start for start, end in itertools.pairwise(boundaries)]
    # split, not slices: the gradient of a slice is as large as the whole, and there is one for every row
    queries, *own = (states.split(lengths, dim=2) for states in (query, key, value))
    keys, values = (_behind([both[which] for both in before], parts, query.dtype) for which, parts in enumerate(own))
    if suits(query, key, value, sliding_window, bool(before), softcap, attend_in_groups):
        if before:
            key, value = (torch.cat(list(parts), dim=2) for parts in (keys, values))
        totals = [part.shape[2] for part in keys]
        return attend_at_once(query, key, value, lengths, totals, scaling, sliding_window), None
    outputs = [attend_in_groups(q, k, v, scaling, sliding_window, softcap)
               for q, k, v in zip(queries, keys, values, strict=True)]
    return torch.cat(outputs, dim=1), None


def _behind(before: Sequence[Tensor], own: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """The keys, or values, that each segment looks at: `before`, and then its own."""
    # converted here, for each segment: so the gradients of what they share are added up in its own, wider numbers
    return [torch.cat([*(part.to(dtype) for part in before), part], dim=2) for part in own] if before else own


def attend_in_groups(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None,
                      softcap: float | None) -> Tensor:
    """`attend` to fewer heads of k and v, each for several of q, without copies of them.

    Shapes: q (1, heads, T, head_dim), k and v (1, key_value_heads, S, head_dim), found (1, T, heads, head_dim).
    """
    heads, shared = q.shape[1], k.shape[1]
    if heads != shared:  # those that share are the heads, those that do not are the rows of a batch
        q = q.reshape(shared, heads // shared, *q.shape[2:])
        k, v = (states.transpose(0, 1).expand(-1, heads // shared, -1, -1) for states in (k, v))
    found = attend(q, k, v, scaling, window, softcap)
    return found.reshape(1, heads, *found.shape[2:]).transpose(1, 2)


def _before(module: nn.Module, trained: Sequence[KeyValue] | None, shared: SharedPrefix | None) -> list[KeyValue]:
    """What stands before every segment in this layer."""
    found = [trained[_layer_of(module)]] if trained is not None else []
    return [*found, shared.of(_layer_of(module))] if shared is not None else found


def _layer_of(module: nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise NotImplementedError("this attention does not tell its layer")
    return layer


def attend(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None,
           softcap: float | None) -> Tensor:
    """Causal attention of one row. q is of the last tokens, k and v of all: those before are seen by every one of q
    within the window.
    """
    length, total = q.shape[2], k.shape[2]
    before = total - length
    if softcap is None and before < length and (window is None or total <= window):
        # queries of nothing for what stands before: with a mask, also what is hidden would be computed
        whole = F.pad(q, (0, 0, before, 0)) if before else q
        return F.scaled_dot_product_attention(whole, k, v, is_causal=True, scale=scaling)[:, :, before:]
    positions = torch.arange(total, device=q.device)
    distance = positions[before:, None] - positions[None, :]  # (length, total)
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scaling)
    scores = (q @ k.transpose(2, 3)) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The attention itself knows who sees whom, so transformers need not build a mask."""


@contextlib.contextmanager
def segmented_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` takes packed rows; call it with `boundaries=` and without an attention mask."""
    with own_attention(model, NAME, packed_segments):
        yield


@contextlib.contextmanager
def own_attention(model: PreTrainedModel, name: str, function: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Inside, the layers of `model` call `function`, which is registered with transformers as `name`."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, _no_mask)
    before = model.config._attn_implementation
    assert before is not None  # load_model chooses one
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
