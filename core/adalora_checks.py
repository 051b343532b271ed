"""What keeps an AdaLoRA run from starting, what is unwise, and how large its file will end. Plain Python."""

from collections.abc import Sequence

from core import words
from core.adapter_shapes import adapter_shapes, file_bytes
from core.config import AdaLoraConfig, Section
from core.records import ModuleInfo
from core.words import plural

Finding = tuple[str, str, str]  # field of the table [adapter], message, hint


def adalora_problems(adapter: AdaLoraConfig, steps: int = 0) -> list[Finding]:
    """Everything that would make the choice of ranks fail; `steps` of the whole run, 0 while not known."""
    found = []
    if adapter.first_rank < adapter.rank:
        found.append(("initial_rank", f"The initial rank ({adapter.first_rank:,}) is below the rank that is to be left "
                      f"({adapter.rank:,}).", f"Choose at least {adapter.rank:,}, or leave it empty."))
    if adapter.budget_end <= adapter.budget_start:
        found.append(("budget_end", f"Pruning ends (at {adapter.budget_end:g} of the steps) before it begins (at "
                      f"{adapter.budget_start:g}).", "Choose a larger share."))
    elif steps and not adapter.has_steps_to_prune(steps):
        found.append(("budget_end", f"The run has only {plural(steps, 'step')}, none of them lies between the two "
                      "ends of pruning.", "Train longer, or leave more room between them."))
    return found


def adalora_advice(adapter: AdaLoraConfig, steps: int = 0) -> list[Finding]:
    """What works but gives nothing; `steps` of the whole run, 0 while not known."""
    if adapter.first_rank == adapter.rank:
        return [("initial_rank", "The initial rank is the rank itself, so no rank can be moved.",
                 f"{-(-3 * adapter.rank // 2):,} would be usual.")]
    start, end = adapter.pruning_steps(steps)
    if steps and adapter.has_steps_to_prune(steps) and not any(
            step % adapter.budget_every == 0 for step in range(start + 1, end)):
        return [("budget_every", f"Pruning lies between the steps {start:,} and {end:,}, so the ranks are chosen "
                 "only once, at its end.", f"About {max((end - start) // 10, 1):,} would fit.")]
    return []


def method_bytes(adapter: Section) -> int:
    """Bytes for each trained number beyond value, gradient and moments: AdaLoRA's two averages, in fp32."""
    return 8 if isinstance(adapter, AdaLoraConfig) else 0


def method_words(targets: Sequence[ModuleInfo], adapter: Section) -> list[str]:
    """What the counts of an AdaLoRA run mean: they are those of its start."""
    if not isinstance(adapter, AdaLoraConfig) or adapter.first_rank == adapter.rank:
        return []
    even = adapter.model_copy(update={"initial_rank": adapter.rank})
    size = words.size(file_bytes(adapter_shapes(targets, even), adapter.save_dtype))
    return [f"Counted at the initial rank {adapter.first_rank:,}. The final file takes about {size}: {adapter.rank:,} "
            "ranks a layer on average, more in some and fewer in others."]
