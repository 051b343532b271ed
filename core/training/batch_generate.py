"""Greedy answers to many prompts at once: padded on the left, one KV cache, rows leave when they end."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from core.control import Control
from core.lora.prefix import prefix_length
from core.training.decode import cache_argument

CPU_ROWS = 16  # as quick as more on a CPU, and a stop is heeded within seconds instead of a minute
ACCELERATOR_ROWS = 64
_GONE_BEFORE_SHRINKING = 0.2  # share of ended rows that makes it worth while to copy the cache without them


def answer_batch(model: PreTrainedModel, prompts: Sequence[Sequence[int]], stop_ids: frozenset[int], limit: int,
                 control: Control, batch_rows: int = 0) -> Iterator[tuple[int, list[int]]]:
    """Answer every prompt with the most likely tokens; prompts of like length are answered together.

    Args:
        model: in eval mode.
        prompts: token ids, each at least one.
        stop_ids: tokens that end an answer; they are not part of it.
        limit: most tokens of an answer.
        control: polled at every token.
        batch_rows: rows held at once; 0 takes what fits the model's device.

    Yields:
        (index of the prompt, tokens of its answer), batch by batch.

    Raises:
        Cancelled: a stop was asked for.
    """
    batch_rows = batch_rows or (CPU_ROWS if model.device.type == "cpu" else ACCELERATOR_ROWS)
    longest = max((len(prompt) for prompt in prompts), default=0)
    padded = not _must_not_be_padded(model, longest + limit)
    for chosen in _groups([len(prompt) for prompt in prompts], batch_rows, padded=padded):
        answers = _answer(model, [prompts[index] for index in chosen], stop_ids, limit, control)
        yield from zip(chosen, answers, strict=True)


def _groups(lengths: Sequence[int], most: int, *, padded: bool) -> Iterator[list[int]]:
    """Indices by rising length, at most so many together; without padding only equal lengths stand together."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    parts = [order] if padded else [list(group) for _, group in groupby(order, key=lambda index: lengths[index])]
    for part in parts:
        for first in range(0, len(part), most):
            yield part[first:first + most]


def _must_not_be_padded(model: PreTrainedModel, tokens: int) -> bool:
    """True where the padding would stand between a prefix and the row, and a sliding window would count it."""
    before = prefix_length(model)
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return before > 0 and isinstance(window, int) and window < before + tokens


@torch.inference_mode()
def _answer(model: PreTrainedModel, prompts: Sequence[Sequence[int]], stop_ids: frozenset[int], limit: int,
            control: Control) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))  # which prompt each row of the batch answers
    ended = [False] * len(prompts)
    ids, mask = _left_padded(prompts, model.device)  # (B, T), (B, T)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache_name = cache_argument(model)
    cache: Any = DynamicCache(config=model.config)
    for _ in range(limit):
        control.check()
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1,
                       **{cache_name: cache})
        cache = getattr(output, cache_name)
        tokens = output.logits[:, -1].argmax(dim=-1)  # (B,)
        for row, token in zip(live, tokens.tolist(), strict=True):
            ended[row] = ended[row] or token in stop_ids
            if not ended[row]:
                answers[row].append(token)
        staying = [place for place, row in enumerate(live) if not ended[row]]
        if not staying:
            break
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        if len(live) - len(staying) >= _GONE_BEFORE_SHRINKING * len(live):
            keep = torch.tensor(staying, device=ids.device)
            ids, positions, mask = ids[keep], positions[keep], mask[keep]
            cache.batch_select_indices(keep)
            live = [live[place] for place in staying]
    return answers


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, each (B, longest prompt); padding is masked, so its id does not matter."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt):] = torch.tensor(prompt)
        mask[row, longest - len(prompt):] = 1
    return ids.to(device), mask.to(device)
