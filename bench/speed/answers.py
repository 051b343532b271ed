"""Answers to the held-out rows of the sample task: ours, and transformers' `generate` at batch 8."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.speed.plan import Plan
from bench.speed.report import Figure, Found, ratios
from core.paths import SAMPLE_HELD_OUT

QUICK_ROWS = 16
PEER_BATCH = 8
SIDES: dict[str, dict[str, str] | None] = {"ours": None, "peer": {}}  # with their settings
_TOKENS_OVER = 8  # as the sample job allows beyond the longest right answer


def answers(plan: Plan) -> Found:
    """Both answer the same prompts with the most likely tokens, in turns."""
    rows = QUICK_ROWS if plan.quick else 0
    turns = [{side: plan.ask(f"answers:{side}", SIDES[side], model=plan.model, rows=rows) for side in SIDES}
             for _ in range(plan.turns)]
    alike = [sum(mine == other for mine, other in zip(turn["ours"].pop("answers"), turn["peer"].pop("answers"),
                                                      strict=True)) for turn in turns]
    speeds = [[turn[side]["tokens_per_second"] for turn in turns] for side in SIDES]
    return Found((Figure("generation against transformers' generate at batch 8", ratios(*speeds), 1.3,
                         note=f"{min(alike)} of {turns[0]['ours']['rows']} answers alike"),), {"answers": turns})


def ours(model: str, rows: int) -> dict[str, Any]:
    """Our batched answers, as evaluation and the sample job make them."""
    from core.control import Control
    from core.training.batch_generate import answer_batch

    loaded, prompts, stops, limit, _ = _prepared(model, rows)
    started = time.perf_counter()
    found = dict(answer_batch(loaded, prompts, stops, limit, Control()))
    return _told([found[index] for index in range(len(prompts))], time.perf_counter() - started)


def peer(model: str, rows: int) -> dict[str, Any]:
    """transformers' generate; prompts of like length stand together, which helps it."""
    import torch

    loaded, prompts, stops, limit, padding = _prepared(model, rows)
    found: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    started = time.perf_counter()
    for chosen in _batches(order, PEER_BATCH):
        width = max(len(prompts[index]) for index in chosen)
        ids = torch.tensor([[padding] * (width - len(prompts[index])) + prompts[index] for index in chosen])
        mask = torch.tensor([[0] * (width - len(prompts[index])) + [1] * len(prompts[index]) for index in chosen])
        with torch.inference_mode():
            whole = loaded.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False,
                                    eos_token_id=sorted(stops), pad_token_id=padding)
        for index, tokens in zip(chosen, whole[:, width:].tolist(), strict=True):
            ends = [place for place, token in enumerate(tokens) if token in stops]
            found[index] = tokens[:ends[0]] if ends else tokens
    return _told([found[index] for index in range(len(prompts))], time.perf_counter() - started)


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(order), size):
        yield order[first:first + size]


def _prepared(model: str, rows: int) -> tuple[Any, list[list[int]], frozenset[int], int, int]:
    """Model, prompts, the tokens that end an answer, most tokens of one, and the id to pad with."""
    import torch

    from core.data.template import render_prompt
    from core.demo import read_held_out
    from core.models.load import load_model, load_tokenizer
    from core.records import Message
    from core.training.decode import stop_tokens
    from core.training.generate import end_of_turn

    path = Path(model)
    tokenizer = load_tokenizer(path)
    held_out = read_held_out(SAMPLE_HELD_OUT)[:rows or None]
    prompts = [render_prompt([Message(*message) for message in row.messages], tokenizer) for row in held_out]
    longest = max(len(tokenizer(row.expected)["input_ids"]) for row in held_out)
    loaded = load_model(path, torch.device("cpu"), torch.float32).eval()
    stops = stop_tokens(loaded.generation_config.eos_token_id, tokenizer, end_of_turn(tokenizer))
    return loaded, prompts, stops, longest + _TOKENS_OVER, min(stops)  # what pads is masked, or cut off


def _told(found: list[list[int]], seconds: float) -> dict[str, Any]:
    from core.demo import peak_rss_bytes

    tokens = sum(map(len, found))
    return {"answers": found, "rows": len(found), "tokens": tokens, "seconds": seconds,
            "tokens_per_second": tokens / seconds, "peak_rss_bytes": peak_rss_bytes()}
