"""What the results say on the article's claims, worked out from the figures alone."""

import statistics
from collections.abc import Iterator
from typing import Any

Results = dict[tuple[str, str], list[dict[str, Any]]]  # (task, variant) -> one result for each seed

SCORE = {"orders": "exact_match", "alpaca": "validation_loss"}


def claims(results: Results, latency: dict[str, Any] | None) -> Iterator[str]:
    """One sentence for each claim, or why there is none."""
    yield from _small_ranks(results)
    yield from _targets(results)
    yield from _full(results)
    yield _inference(latency)


def loss(results: Results, task: str, variant: str) -> float | None:
    """Mean validation loss over the seeds."""
    found = [result["validation_loss"] for result in results.get((task, variant), []) if "validation_loss" in result]
    return statistics.mean(found) if found else None


def noise(results: Results, task: str) -> float:
    """The largest spread of the validation loss between seeds of one cell: less than this is no difference."""
    spreads = [max(losses) - min(losses) for (of, _), found in results.items() if of == task
               and len(losses := [result["validation_loss"] for result in found if "validation_loss" in result]) > 1]
    return max(spreads, default=0.0)


def _verdict(worse_by: float, spread: float, words: str) -> str:
    """`confirmed`, `not confirmed`, or that the difference is within the noise."""
    if abs(worse_by) <= spread:
        return f"{words}: no difference beyond the spread between seeds ({spread:.3f})."
    return f"{words}: {worse_by:+.3f} in validation loss, beyond the spread between seeds ({spread:.3f})."


def _small_ranks(results: Results) -> Iterator[str]:
    for task in SCORE:
        for short, words in (("qv", "Wq+Wv"), ("all", "all linear layers")):
            small, large = (loss(results, task, f"lora-{short}-r{rank}") for rank in (4, 16))
            if small is None or large is None:
                yield f"**A small rank suffices** ({task}, {words}): not measured."
            else:
                yield f"**A small rank suffices** ({task}, {words}): " + _verdict(
                    small - large, noise(results, task), "rank 4 against rank 16")


def _targets(results: Results) -> Iterator[str]:
    """Equal budgets: Wq+Wv at rank 16 trains about as many numbers as all linear layers at rank 4 or less."""
    for task in SCORE:
        budgets = {variant: found[0]["trainable_parameters"] for (of, variant), found in results.items()
                   if of == task and variant.startswith("lora-") and found}
        mine = budgets.get("lora-qv-r16")
        others = {variant: budget for variant, budget in budgets.items()
                  if mine and not variant.startswith("lora-qv") and 0.4 <= budget / mine <= 1.6}
        if not mine or not others:
            yield f"**Wq+Wv is best for its budget** ({task}): not measured."
            continue
        here = loss(results, task, "lora-qv-r16")
        for variant, size in others.items():
            there = loss(results, task, variant)
            if here is not None and there is not None:
                yield f"**Wq+Wv is best for its budget** ({task}): " + _verdict(
                    here - there, noise(results, task),
                    f"Wq+Wv r=16 ({mine:,} trained) against {variant.removeprefix('lora-')} ({size:,})")


def _full(results: Results) -> Iterator[str]:
    for task in SCORE:
        full, lora = loss(results, task, "full"), loss(results, task, "lora-all-r16")
        if full is None or lora is None:
            yield f"**LoRA comes close to full fine-tuning** ({task}): not measured."
        else:
            yield f"**LoRA comes close to full fine-tuning** ({task}): " + _verdict(
                lora - full, noise(results, task), "LoRA r=16 on all linear layers against full fine-tuning")


def _inference(latency: dict[str, Any] | None) -> str:
    if latency is None:
        return "**A merged adapter costs nothing at inference**: not measured."
    times = latency["milliseconds_a_token"]
    return ("**A merged adapter costs nothing at inference**: a token takes "
            f"{times['merged'] / times['base']:.2f} times as long as with the base, "
            f"{times['base + adapter'] / times['base']:.2f} times with the adapter beside it "
            f"({times['base']:.1f} ms with the base).")
