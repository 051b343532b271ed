"""Which runs the study consists of. The rules are written here, once, and printed in the report.

All runs of a task see the same rows in the same order for the same number of steps. Learning rates follow
one rule a method instead of a search for each cell:

- low-rank methods: 1.5e-3, what suited LoRA on the sample task; alpha is twice the rank, so the scale is the
  same for every rank (rsLoRA: alpha so that the scale at rank 16 is the same);
- LoRA+: a quarter of it for A, sixteen times that for B, as its paper advises;
- PiSSA: a fifth, as it starts from the largest directions of the weights themselves;
- AdaLoRA: twice, as its paper's are higher than LoRA's;
- full fine-tuning: a fifteenth, which did well on the sample task and is within the usual tenth to fiftieth.
"""

from dataclasses import dataclass

RATE = 1.5e-3
TASKS = ("orders", "alpaca")
SEEDS = (0, 1, 2)
# Repeated with three seeds: those whose results lie close together. Their differences, seed by seed, tell how much
# of a difference is chance.
CLOSE = {"orders": ("lora-all-r16", "lora-qv-r16", "lora-all-r4", "dora-all-r16", "full"),
         "alpaca": ("lora-all-r16", "lora-qv-r16", "full")}
# The question put to the general task is the article's: do small ranks, few layers and LoRA at all suit it as well?
GENERAL = ("lora-qv-r1", "lora-qv-r4", "lora-qv-r16", "lora-all-r1", "lora-all-r4", "lora-all-r16", "dora-all-r16",
           "full")


@dataclass(frozen=True)
class Variant:
    """One way of training: its name, `--set` changes, and its words in the table."""

    name: str
    title: str
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run: a task, a variant, a seed."""

    task: str
    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """The name of its result file."""
        return f"{self.task}.{self.variant.name}.seed{self.seed}"


def _low_rank(method: str, target: str, rank: int, rate: float = RATE, *more: str) -> tuple[str, ...]:
    return (f"adapter.method={method}", f"adapter.rank={rank}", f"adapter.alpha={2 * rank}",
            f"adapter.target_modules={target}", f"training.learning_rate={rate}", *more)


def variants() -> list[Variant]:
    """All ways of training that the study compares."""
    found = [
        Variant(f"lora-{short}-r{rank}", f"LoRA r={rank}, {words}", _low_rank("lora", target, rank))
        for short, target, words in (("qv", "q-v", "Wq+Wv"), ("attention", "attention", "attention"),
                                     ("all", "all-linear", "all linear"))
        for rank in (1, 4, 8, 16)
    ]
    everywhere = "all-linear"
    return [
        *found,
        Variant("dora-all-r16", "DoRA r=16, all linear", _low_rank("dora", everywhere, 16)),
        Variant("rslora-all-r16", "rsLoRA r=16, all linear",
                (*_low_rank("lora", everywhere, 16), "adapter.rslora=true", "adapter.alpha=8")),
        Variant("loraplus-all-r16", "LoRA+ r=16, all linear",
                _low_rank("lora", everywhere, 16, RATE / 4, "adapter.lora_plus_ratio=16")),
        Variant("pissa-all-r16", "PiSSA r=16, all linear",
                _low_rank("lora", everywhere, 16, RATE / 5, "adapter.init=pissa")),
        Variant("eva-all-r16", "EVA r=16, all linear", _low_rank("lora", everywhere, 16, RATE, "adapter.init=eva")),
        Variant("adalora-all-r16", "AdaLoRA r=16 (from 24), all linear",
                _low_rank("adalora", everywhere, 16, 2 * RATE)),
        Variant("qlora-all-r16", "QLoRA (NF4) r=16, all linear", _low_rank("qlora", everywhere, 16)),
        Variant("prefix-lora-r8", "Prefix 20 + LoRA r=8, all linear",
                (*_low_rank("lora", everywhere, 8), "prefix.length=20")),
        Variant("full", "Full fine-tuning", ("adapter.method=full", "adapter.target_modules=all",
                                             f"training.learning_rate={RATE / 15}")),
    ]


def cells() -> list[Cell]:
    """Every run, the first seed of all before the further seeds of the closest."""
    every = {variant.name: variant for variant in variants()}
    first = [Cell("orders", variant, SEEDS[0]) for variant in every.values()]
    general = [Cell("alpaca", every[name], SEEDS[0]) for name in GENERAL]
    again = [Cell(task, every[name], seed) for seed in SEEDS[1:] for task in TASKS for name in CLOSE[task]]
    return first + general + again


def quick_cells() -> list[Cell]:
    """A few telling ones, for a look in minutes."""
    names = ("lora-qv-r1", "lora-qv-r8", "lora-all-r8", "full")
    return [cell for cell in cells() if cell.task == "orders" and cell.seed == 0 and cell.variant.name in names]
