"""Which runs are compared, and how many steps of each are measured.

Everything that both sides must do alike stands here once: rows, lengths, batch, targets, rank, number type, learning
rate. The rate is constant and there is neither warm-up nor dropout, so that both optimizers do the same.
"""

from dataclasses import dataclass
from pathlib import Path

from core.config import RunConfig, parse_config

FILES = {"alpaca": "alpaca_en_demo.json", "wiki": "wiki_demo.txt", "toolcalls": "glaive_toolcall_en_demo.json"}
MAIN = "main"


@dataclass(frozen=True)
class Case:
    """One comparison. `warm` steps are left out of the speed, `steps` are measured; the quick numbers are a trial."""

    name: str
    title: str
    data: str
    targets: str = "q-v"
    rank: int = 8
    batch: int = 8
    length: int = 512
    warm: int = 2
    steps: int = 12
    quick_warm: int = 1
    quick_steps: int = 3

    def measured(self, quick: bool) -> tuple[int, int]:
        """(steps to warm up, steps to measure)."""
        return (self.quick_warm, self.quick_steps) if quick else (self.warm, self.steps)


CASES = (
    Case(MAIN, "q+v, r=8, batch 8, length 512", "alpaca"),
    Case("all-linear", "all-linear targets", "alpaca", targets="all-linear"),
    Case("r64", "r=64", "alpaca", rank=64),
    Case("batch-1", "batch 1", "alpaca", batch=1, warm=8, steps=96, quick_warm=2, quick_steps=16),
    # batch 2: eight such rows at once would need more memory than most machines have, on the peer's side
    Case("long", "length 2048, wiki text, batch 2", "wiki", batch=2, length=2048, warm=1, steps=8, quick_steps=2),
    Case("tool-calls", "tool-call conversations, length 1536, batch 4", "toolcalls", batch=4, length=1536),
)


def config_of(case: Case, model: str, data: Path, steps: int) -> RunConfig:
    """The run file of a case, for the first `steps` steps."""
    return parse_config({
        "model": {"path": model},
        "data": {"train": [str(data)], "max_length": case.length, "validation_fraction": 0.0},
        "adapter": {"method": "lora", "rank": case.rank, "alpha": 2.0 * case.rank, "target_modules": case.targets},
        "training": {"batch_size": case.batch, "max_steps": steps, "epochs": 1000.0, "schedule": "constant",
                     "warmup_steps": 0, "evaluate_every": 0, "checkpoint_every": 0, "device": "cpu", "dtype": "fp32"},
    })
