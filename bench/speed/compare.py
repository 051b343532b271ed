"""Speed and memory of a training against peft + Trainer, side by side, in turns."""

from typing import Any

from bench.speed.cases import MAIN, Case, config_of
from bench.speed.plan import Plan, thread_waiting
from bench.speed.report import Figure, Found, ratios

# An allocator that gives nothing back to the system and so has nothing to fault in again (glibc); huge pages
# where the system has them. Elsewhere these variables are not known and do nothing.
BEST = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
RECIPES: dict[str, dict[str, str]] = {"ordinary": {}, "best": BEST}
# beside the main case: its threads wait as ours do, which no setting of peft or the Trainer gives
AWAKE = "best, awake"
Turn = dict[str, dict[str, Any]]


def compare(plan: Plan, case: Case) -> Found:
    """One case, all sides in every turn."""
    warm, steps = case.measured(plan.quick)
    config = config_of(case, plan.model, plan.files[case.data], warm + steps).model_dump(mode="json")
    turns: list[Turn] = []
    for _ in range(plan.turns):
        turn = {"ours": plan.ask("ours:train_once", config=config, warm=warm, count=case.name == MAIN)}
        awake = {AWAKE: BEST | thread_waiting()} if case.name == MAIN else {}
        for recipe, settings in (RECIPES | awake).items():
            turn[recipe] = plan.ask("peer:train_once", settings, config=config, recipe=recipe, warm=warm)
        turns.append(turn)
    return Found(figures_of(case, turns), {case.name: turns})


def figures_of(case: Case, turns: list[Turn]) -> tuple[Figure, ...]:
    """Ratios of the turns; the main case has the targets of memory and roofline besides."""
    ours, ordinary, best = (values(turns, side, "tokens_per_second") for side in ("ours", *RECIPES))
    if case.name != MAIN:
        return (Figure(f"{case.title}: against peft at its best", ratios(ours, best), 1.6),
                Figure(f"{case.title}: against its ordinary recipe", ratios(ours, ordinary), 1.6))
    memory, peers = (values(turns, side, "peak_rss_bytes") for side in ("ours", "ordinary"))
    estimated = values(turns, "ours", "estimated_bytes")
    shares = tuple(turn["ours"]["flops"] / turn["ours"]["seconds"] / 1e9 / turn["ours"]["matrix_gflops"]
                   for turn in turns)
    return (
        Figure("tokens/s against peft + Trainer, ordinary recipe", ratios(ours, ordinary), 2.6, note=case.title),
        Figure("tokens/s against peft + Trainer at its best", ratios(ours, best), 1.8),
        Figure("tokens/s against the same, its threads waiting as ours do",
               ratios(ours, values(turns, AWAKE, "tokens_per_second"))),
        *(Figure(f"the same by processor time, {recipe}", ratios(values(turns, "ours", "tokens_per_cpu_second"),
                                                                 values(turns, recipe, "tokens_per_cpu_second")))
          for recipe in RECIPES),
        Figure("tokens/s, ours", ours, form="{:.0f}"),
        Figure("share of the roofline", shares, 0.75, form="{:.0%}"),
        Figure("peak memory against peft + Trainer", ratios(memory, peers), 0.20, "most"),
        Figure("peak memory, ours", tuple(size / 1e9 for size in memory), form="{:.2f} GB"),
        Figure("estimate of the memory, off by", tuple(abs(guess / size - 1) for guess, size
                                                       in zip(estimated, memory, strict=True)),
               0.15, "most", "{:.0%}"),
    )


def values(turns: list[Turn], side: str, name: str) -> tuple[float, ...]:
    """One number of a side, turn by turn."""
    return tuple(turn[side][name] for turn in turns)
