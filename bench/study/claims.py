"""What the results say on the article's claims, worked out from the figures alone."""

import itertools
import statistics
from collections.abc import Iterator
from typing import Any

from bench.study.cells import TASKS

Results = dict[tuple[str, str], list[dict[str, Any]]]  # (task, variant) -> one result for each seed


def claims(results: Results, latency: dict[str, Any] | None) -> Iterator[str]:
    """One sentence for each claim, or why there is none."""
    yield from _small_ranks(results)
    yield from _targets(results)
    yield from _full(results)
    yield _inference(latency)


def losses(results: Results, task: str, variant: str) -> dict[int, float]:
    """Validation loss by seed."""
    return {result["seed"]: result["validation_loss"] for result in results.get((task, variant), [])
            if "validation_loss" in result}


def difference(results: Results, task: str, first: str, second: str) -> float | None:
    """Mean of first minus second over the seeds that both have: the same rows, order and split in each pair."""
    found = _paired(losses(results, task, first), losses(results, task, second))
    return statistics.mean(found) if found else None


def noise(results: Results, task: str) -> float | None:
    """How far the difference of two cells moves between seeds, at most: less than this is no difference.

    None where no two cells share two seeds.
    """
    by_variant = [found for (of, variant) in results if of == task and len(found := losses(results, of, variant)) > 1]
    spreads = [max(pairs) - min(pairs) for first, second in itertools.combinations(by_variant, 2)
               if len(pairs := _paired(first, second)) > 1]
    return max(spreads, default=None)


def _paired(first: dict[int, float], second: dict[int, float]) -> list[float]:
    return [first[seed] - second[seed] for seed in first if seed in second]


def _verdict(results: Results, task: str, first: str, second: str, words: str) -> str | None:
    """The measured difference and whether it is more than chance; None where it was not measured."""
    worse_by, spread = difference(results, task, first, second), noise(results, task)
    if worse_by is None:
        return None
    if spread is None:
        return f"{words}: {worse_by:+.3f} in validation loss; how much of it is chance was not measured."
    if abs(worse_by) <= spread:
        return (f"{words}: no difference beyond chance ({worse_by:+.3f} in validation loss, where such differences "
                f"move by up to {spread:.3f} between seeds).")
    return f"{words}: {worse_by:+.3f} in validation loss, beyond what chance moves it between seeds ({spread:.3f})."


def _small_ranks(results: Results) -> Iterator[str]:
    for task in TASKS:
        for short, words in (("qv", "Wq+Wv"), ("all", "all linear layers")):
            for small in (1, 4):
                said = _verdict(results, task, f"lora-{short}-r{small}", f"lora-{short}-r16",
                                f"rank {small} against rank 16")
                yield f"**A small rank suffices** ({task}, {words}): {said or 'not measured.'}"


def _targets(results: Results) -> Iterator[str]:
    """Equal budgets: Wq+Wv at rank 16 trains about as many numbers as all linear layers at rank 4 or less."""
    for task in TASKS:
        budgets = {variant: found[0]["trainable_parameters"] for (of, variant), found in results.items()
                   if of == task and variant.startswith("lora-") and found}
        mine = budgets.get("lora-qv-r16")
        said = [_verdict(results, task, "lora-qv-r16", variant,
                         f"Wq+Wv r=16 ({mine:,} trained) against {variant.removeprefix('lora-')} ({size:,})")
                for variant, size in budgets.items()
                if mine and not variant.startswith("lora-qv") and 0.4 <= size / mine <= 1.6]
        for sentence in said or ["not measured."]:
            yield f"**Wq+Wv is best for its budget** ({task}): {sentence}"


def _full(results: Results) -> Iterator[str]:
    for task in TASKS:
        said = _verdict(results, task, "lora-all-r16", "full",
                        "LoRA r=16 on all linear layers against full fine-tuning")
        yield f"**LoRA comes close to full fine-tuning** ({task}): {said or 'not measured.'}"


def _inference(latency: dict[str, Any] | None) -> str:
    if latency is None:
        return "**A merged adapter costs nothing at inference**: not measured."
    times = latency["milliseconds_a_token"]
    return ("**A merged adapter costs nothing at inference**: a token takes "
            f"{times['merged'] / times['base']:.2f} times as long as with the base, "
            f"{times['base + adapter'] / times['base']:.2f} times with the adapter beside it "
            f"({times['base']:.1f} ms with the base).")
