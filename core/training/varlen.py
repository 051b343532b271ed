"""Attention of all packed rows in one call, on GPUs whose torch has a kernel for it (`torch.nn.attention.varlen`).

Row by row, each row costs some small kernels in every layer; here there is one. Only in 16 bits and without capped
scores. Whether the kernel is there, takes these shapes and gives what row by row gives, forward and backward, is
asked once for each kind; where not, rows are computed one after the other.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
_ASKED = (5, 9)  # tokens of the rows with which the kernel is asked
_ASKED_BEFORE = 3
_ASKED_WINDOW = 4
_ASKED_SCALING = 0.3
_CLOSE = 2e-2  # of 16-bit numbers: the difference by the size of all of them
Attend = Callable[[Tensor, Tensor, Tensor, float | None, int | None, float | None], Tensor]


class Kind(NamedTuple):
    """What the kernel is asked about."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    key_value_heads: int
    head_dim: int
    windowed: bool
    goes_on: bool  # from something that stands before every row


def attend_at_once(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], totals: Sequence[int],
                   scaling: float | None, window: int | None) -> Tensor:
    """Causal attention of every row to its own keys and values; what these have more than queries stands before.

    Args:
        query: (1, heads, T, head_dim), the rows end to end.
        key, value: (1, key_value_heads, S, head_dim), likewise.
        lengths: how many queries each row has; they add up to T.
        totals: how many keys each row has; they add up to S.
        scaling: of the scores; None is 1 / sqrt(head_dim).
        window: so many tokens, itself among them, are seen by each; None: all before.

    Returns:
        (1, T, heads, head_dim).
    """
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - not in every torch

    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    found = varlen_attn(
        q, k, v, _starts(tuple(lengths), q.device), _starts(tuple(totals), q.device), max(lengths), max(totals),
        scale=scaling, window_size=(-1 if window is None else window - 1, 0), enable_gqa=q.shape[1] != k.shape[1])
    assert isinstance(found, Tensor)
    return found[None]


@lru_cache(maxsize=64)  # every layer of a pass asks for the same, and each would wait for a copy to the GPU
def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept, and a training may ask for it next
        return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def suits(query: Tensor, key: Tensor, value: Tensor, window: int | None, goes_on: bool, softcap: float | None,
          one_by_one: Attend) -> bool:
    """Whether rows with such queries and keys can be computed at once.

    Args:
        query: (1, heads, T, head_dim).
        key: (1, key_value_heads, T, head_dim).
        value: as key; in some models it is narrower, which the kernel does not take.
        window: as for `attend_at_once`.
        goes_on: something stands before every row.
        softcap: a bound of the scores, which the kernel does not know.
        one_by_one: computes a row as it must come out.
    """
    if softcap is not None or value.shape[3] != query.shape[3] or not _may_have_kernel(query):
        return False
    return _asked(Kind(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3], window is not None,
                       goes_on), one_by_one)


def _may_have_kernel(query: Tensor) -> bool:
    return query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16)


@lru_cache(maxsize=64)
def _asked(kind: Kind, one_by_one: Attend) -> bool:
    """Compare the kernel with `one_by_one` on short rows, in the results and in the gradients."""
    before = _ASKED_BEFORE if kind.goes_on else 0
    window = _ASKED_WINDOW if kind.windowed else None
    try:
        # whatever it is asked within: an answer, an evaluation, or layers that are computed a second time
        with torch.inference_mode(False), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_as_is, _as_is):
            rows = [_states(kind, kind.heads, length) for length in _ASKED]
            keys, values = ([_states(kind, kind.key_value_heads, length + before, more) for length in _ASKED]
                            for more in (1.0, 2.0))
            leaves = [*rows, *keys, *values]
            totals = [length + before for length in _ASKED]
            query, key, value = (torch.cat(states, dim=2) for states in (rows, keys, values))
            found = attend_at_once(query, key, value, _ASKED, totals, _ASKED_SCALING, window)
            expected = torch.cat([one_by_one(*row, _ASKED_SCALING, window, None)
                                  for row in zip(rows, keys, values, strict=True)], dim=1)
            pairs = [(found, expected), *zip(*(torch.autograd.grad(each.float().square().sum(), leaves)
                                               for each in (found, expected)), strict=True)]
            alike = all(_alike(mine.float(), other.float()) for mine, other in pairs)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError,
            ValueError) as error:
        _log.info("packed rows attend one after the other: %r", error)
        return False
    if not alike:
        _log.info("packed rows attend one after the other: at once they would not give the same for %s", kind)
    return alike


def _alike(mine: Tensor, other: Tensor) -> bool:
    return bool((mine - other).norm() <= _CLOSE * other.norm())


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def _states(kind: Kind, heads: int, length: int, more: float = 0.0) -> Tensor:
    """Made of waves: random numbers would change those of the run."""
    waves = torch.linspace(-9.0 - more, 8.0, heads * length * kind.head_dim, device=kind.device).mul_(7).sin_()
    return waves.view(1, heads, length, kind.head_dim).to(kind.dtype).requires_grad_()
