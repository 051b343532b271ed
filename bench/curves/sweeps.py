"""Which runs are measured: one quantity grows, the rest stays. Rows are filled to their length: sizes are exact."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config import RunConfig, parse_config
from core.estimate import PACK_TOKENS

WIDE = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # wide enough for every rank
LAYERS = 30  # of the starter model


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    `x` is the quantity that grows; `warm` steps are left out of the speed; `instruction` is so many words, with which
    all rows begin and which are computed once where they are more than none.
    """

    x: int
    length: int = 256
    batch: int = 4
    warm: int = 1
    steps: int = 3
    instruction: int = 0
    adapter: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in one quantity, and what theory says of it."""

    name: str
    title: str
    quantity: str
    points: tuple[Point, ...]
    theory: str
    doubling: bool = True  # the axis of the quantity is a logarithmic one

    def point_name(self, point: Point) -> str:
        """The name of its result file."""
        return f"{self.name}.{point.x}"


SWEEPS = (
    Sweep("length", "Length of a row, about 2,048 tokens a step", "tokens in a row",
          tuple(Point(length, length, max(1, 2048 // length)) for length in (128, 256, 512, 1024, 2048, 4096)),
          "The products with the weights cost the same for each token; attention grows with the row: a token looks at "
          f"(n + 1) / 2 others in the mean. Memory grows with the largest pass, which is {PACK_TOKENS} tokens or "
          "one longer row, so it bends there."),
    Sweep("rank", "Rank on five kinds of layers, 1,024 tokens a step", "rank",
          tuple(Point(rank, adapter={"rank": rank, "target_modules": list(WIDE)}) for rank in (1, 4, 16, 64, 256)),
          "A pair of rank r costs 6 r (in + out) operations a token beside the 4 in out of the layer that it adapts: "
          "nothing at rank 1, a good part at 256. Memory: 16 bytes for each number that is trained."),
    Sweep("batch", "Rows of 128 tokens in a step", "rows in a step",
          tuple(Point(batch, 128, batch, warm=max(1, 8 // batch), steps=max(3, 24 // batch))
                for batch in (1, 2, 4, 8, 16, 32)),
          "The same work for each token. Small steps are slower: a product of few rows reads every weight for little "
          "work, and the optimizer runs once a step; from four rows on that is hidden. Memory is flat from "
          f"{PACK_TOKENS} tokens on, as larger steps are passes of that size after each other."),
    Sweep("layers", "Trained layers from the top, 1,024 tokens a step", "trained layers",
          tuple(Point(LAYERS - first, adapter={"first_layer": first, "target_modules": "q-v", "rank": 8})
                for first in (29, 20, 10, 0)),
          "Forward all layers, backward only down to the lowest trained one, and nothing is kept for what lies below: "
          "time and memory are straight lines with an offset.", doubling=False),
    Sweep("instruction", "Words of the instruction that all rows begin with, 8 rows of 512 tokens a step",
          "words in the instruction", tuple(Point(words, 512, 8, instruction=words) for words in (1, 128, 256, 384)),
          "What all rows of a step begin with is computed once: of n rows, n - 1 do without. The longer it is, the "
          f"smaller are the passes beside it, as both together have {PACK_TOKENS} tokens; each pass reads all weights.",
          doubling=False),
)


def config_of(point: Point, model: str, data: Path) -> RunConfig:
    """The run file of a point; `data` holds rows that fill its length."""
    return parse_config({
        "model": {"path": model},
        "data": {"train": [str(data)], "max_length": point.length, "validation_fraction": 0.0},
        "adapter": {"method": "lora", "rank": 8, "alpha": 16.0, "target_modules": "q-v"} | point.adapter,
        "training": {"batch_size": point.batch, "max_steps": point.warm + point.steps, "epochs": 1000.0,
                     "schedule": "constant", "warmup_steps": 0, "evaluate_every": 0, "checkpoint_every": 0,
                     "device": "cpu", "dtype": "fp32",
                     "shared_prefix": "auto" if point.instruction else "off"}})


def every_point() -> Iterator[tuple[Sweep, Point]]:
    """All runs, sweep by sweep."""
    for sweep in SWEEPS:
        for point in sweep.points:
            yield sweep, point
