"""Greedy answers to many prompts at once. Rows lie in slots: one leaves where its answer ends, the next one enters.

Where the attention of a model can not be computed in slots, rows are padded on the left, with one KV cache for all.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from core.control import Control
from core.lora.prefix import prefix_length
from core.training.contention import watched_contention
from core.training.decode import cache_argument
from core.training.head import quick_head
from core.training.slots import Slots, slotted_attention

CPU_ROWS = 64  # a step of the starter reads its weights once for all of them, and takes a fraction of a second
ACCELERATOR_ROWS = 64
_PREFILL_TOKENS = {"cpu": 512}  # of prompts in one forward pass, between which a stop is heard
_PREFILL_TOKENS_ELSEWHERE = 8192
_CACHE_BYTES = 2**30  # of keys and values; beyond it fewer rows are held
_SMALLEST_CAPACITY = 256  # tokens of a slot; rows in need of more have slots of twice, four times … the size
_FEWEST_PROMPTS = 3  # for which it is worth while to try whether slots are right
_PROBE_TOKENS = 24
_PADDED_CPU_ROWS = 16  # where the cache is copied at every token, more are not quicker
_GONE_BEFORE_SHRINKING = 0.2  # share of ended rows that makes it worth while to copy the cache without them
_log = logging.getLogger(__name__)


def answer_batch(model: PreTrainedModel, prompts: Sequence[Sequence[int]], stop_ids: frozenset[int], limit: int,
                 control: Control, batch_rows: int = 0) -> Iterator[tuple[int, list[int]]]:
    """Answer every prompt with the most likely tokens.

    Args:
        model: in eval mode.
        prompts: token ids, each at least one.
        stop_ids: tokens that end an answer; they are not part of it.
        limit: most tokens of an answer.
        control: polled at every token.
        batch_rows: rows held at once; 0 takes what fits the model's device.

    Yields:
        (index of the prompt, tokens of its answer), as they end.

    Raises:
        Cancelled: a stop was asked for.
    """
    rows = batch_rows or (CPU_ROWS if model.device.type == "cpu" else ACCELERATOR_ROWS)
    reason = why_not_in_slots(model, prompts, limit)
    if reason:
        _log.info("answers are computed in padded batches: %s", reason)
    with quick_head(model), watched_contention():
        answers = _answer_padded if reason else _answer_by_capacity
        yield from answers(model, prompts, stop_ids, limit, control, rows)


@torch.inference_mode()
def why_not_in_slots(model: PreTrainedModel, prompts: Sequence[Sequence[int]], limit: int) -> str:
    """Why not to use slots; "" where two short rows get the same logits in slots as each of them alone."""
    if len(prompts) < _FEWEST_PROMPTS or limit < 1:
        return "there are few of them"
    if prefix_length(model):
        return "a prefix stands before every row"
    probe = [list(prompt[-_PROBE_TOKENS:]) for prompt in sorted(prompts, key=len) if len(prompt) > 1][:2]
    if not probe:
        return "no prompt is long enough to try it"
    alone = [model(input_ids=torch.tensor([row], device=model.device), use_cache=False, logits_to_keep=2).logits[0]
             for row in probe]  # (2, V) each
    slots = Slots(len(probe), _PROBE_TOKENS, model.device)
    try:
        with slotted_attention(model):
            begun = model(**slots.step([], [row[:-1] for row in probe])).logits[0]
            followed = model(**slots.step([row[-1] for row in probe], [])).logits[0]
    except (NotImplementedError, AssertionError, AttributeError, TypeError, ValueError) as error:
        return str(error) or type(error).__name__  # a family that lacks what slots need
    found, expected = torch.stack([begun, followed], dim=1).float(), torch.stack(alone).float()
    near = 1e-4 if model.dtype == torch.float32 else 5e-2
    same = found.shape == expected.shape and bool((found - expected).abs().max() <= near * expected.abs().max())
    return "" if same else "this model computes others in slots"


def _token_bytes(model: PreTrainedModel) -> int:
    """Bytes of the keys and values of one token."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize


def _by_capacity(lengths: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Capacity of the slots, and the rows that go there, by rising length."""
    def capacity(row: int) -> int:
        return max(_SMALLEST_CAPACITY, 1 << (lengths[row] - 1).bit_length())

    for size, rows in groupby(sorted(range(len(lengths)), key=lambda row: lengths[row]), key=capacity):
        yield size, list(rows)


def _answer_by_capacity(model: PreTrainedModel, prompts: Sequence[Sequence[int]], stop_ids: frozenset[int], limit: int,
                        control: Control, rows: int) -> Iterator[tuple[int, list[int]]]:
    """Answer prompts of like length together, in slots of their size."""
    with slotted_attention(model):
        for capacity, chosen in _by_capacity([len(prompt) + limit for prompt in prompts]):
            fitting = max(1, _CACHE_BYTES // (capacity * _token_bytes(model)))
            slots = Slots(min(rows, fitting, len(chosen)), capacity, model.device)
            waiting = [(place, list(prompts[place])) for place in chosen]
            yield from _answer_in_slots(model, slots, waiting, stop_ids, limit, control)


@torch.inference_mode()
def _answer_in_slots(model: PreTrainedModel, slots: Slots, waiting: list[tuple[int, list[int]]],
                     stop_ids: frozenset[int], limit: int, control: Control) -> Iterator[tuple[int, list[int]]]:
    """Answer the (number, prompt) that wait, in their order."""
    most = _PREFILL_TOKENS.get(model.device.type, _PREFILL_TOKENS_ELSEWHERE)
    waiting.reverse()  # the next one is the last
    live: list[tuple[int, list[int]]] = []  # number and answer of the row in each slot
    while live or waiting:
        control.check()
        entering: list[tuple[int, list[int]]] = []
        tokens = 0
        while waiting and len(entering) < slots.free and (not entering or tokens + len(waiting[-1][1]) <= most):
            entering.append(waiting.pop())
            tokens += len(entering[-1][1])
        step = slots.step([answer[-1] for _, answer in live], [prompt for _, prompt in entering])
        chosen = model(**step).logits[0].argmax(dim=-1).tolist()
        live += [(number, []) for number, _ in entering]
        ended = []
        for slot, ((_, answer), token) in enumerate(zip(live, chosen, strict=True)):
            if token not in stop_ids:
                answer.append(token)
            if token in stop_ids or len(answer) == limit:
                ended.append(slot)
        done = [live[slot] for slot in ended]
        for slot in reversed(ended):  # so the row that moves into the gap is one that stays
            slots.leave(slot)
            live[slot] = live[-1]
            live.pop()
        yield from done


def _answer_padded(model: PreTrainedModel, prompts: Sequence[Sequence[int]], stop_ids: frozenset[int], limit: int,
                   control: Control, rows: int) -> Iterator[tuple[int, list[int]]]:
    """Answer prompts of like length together."""
    rows = min(rows, _PADDED_CPU_ROWS) if model.device.type == "cpu" else rows
    longest = max((len(prompt) for prompt in prompts), default=0)
    padded = not _must_not_be_padded(model, longest + limit)
    for chosen in _groups([len(prompt) for prompt in prompts], rows, padded=padded):
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
