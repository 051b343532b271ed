"""Where the time of a training step goes, beside the speed of a large matrix product in the same process.

    python bench/step_profile.py --data FOLDER [--case main] [--steps 4] [--json OUT]

FOLDER holds the files of `bench/speed/cases.py`. torch's own profiler tells the time of every operation without those
it calls, on the thread that trains; what is left of a step's time is Python's. The profiler itself costs some percent,
so a step is a little slower than in `make bench`. With OUT bench/results/speed/profile.json,
`bench/training.py --report` shows the table in docs/speed.md.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.config import RunConfig

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from core.memory import VOCABULARY_BLOCK  # noqa: E402

GROUPS = {
    "layers": "products with the frozen weights of the layers",
    "lora": "products of LoRA (one side is the rank)",
    "output": "output layer and its loss",
    "attention": "attention",
    "optimizer": "optimizer and clipping",
    "elementwise": "norms, rotary, SwiGLU, residuals, copies",
    "python": "Python between the operations",
}
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")


def group_of(name: str, shapes: list[list[int]], rank: int, vocabulary: int) -> str:
    """Which row of the table an operation belongs to."""
    sizes = {size for shape in shapes for size in shape}
    if "scaled_dot_product" in name or "flash_attention" in name:
        return "attention"
    if "_foreach" in name or "adam" in name:
        return "optimizer"
    if vocabulary in sizes or VOCABULARY_BLOCK in sizes:
        return "output"
    if name in _PRODUCTS:
        return "lora" if rank in sizes else "layers"
    return "elementwise"


def product_flops(name: str, shapes: list[list[int]]) -> int:
    """Operations of one matrix product with inputs of these shapes: first what is added to, last what is written to."""
    left, right = shapes[1:3] if "add" in name else shapes[:2]
    return 2 * math.prod(left) * right[-1]


def profile_steps(config: "RunConfig", warm: int, steps: int) -> tuple[list[Any], float, float]:
    """Train and profile; the profiler's averages by shape, the seconds of the profiled steps, GFLOP/s beside them."""
    from torch.profiler import ProfilerActivity, profile

    from bench.speed.machine import matrix_speed
    from core.control import Control
    from core.events import StepDone
    from core.jobs import Train
    from core.training.loop import train

    speeds, started, seconds = [matrix_speed()], 0.0, 0.0
    watch = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    with tempfile.TemporaryDirectory() as folder:
        for event in train(Train(config, Path(folder) / "run"), Control()):
            if isinstance(event, StepDone) and event.step == warm:
                watch.start()
                started = time.perf_counter()
            elif isinstance(event, StepDone) and event.step == warm + steps:
                seconds = time.perf_counter() - started
                watch.stop()
    speeds.append(matrix_speed())
    return list(watch.key_averages(group_by_input_shape=True)), seconds, max(speeds)


def table_of(averages: Iterable[Any], seconds: float, rank: int, vocabulary: int) -> dict[str, dict[str, float]]:
    """By group: its share of the time, and the GFLOP/s of its products where it has any."""
    spent: dict[str, float] = defaultdict(float)
    products: dict[str, float] = defaultdict(float)
    flops: dict[str, float] = defaultdict(float)
    for entry in averages:
        own = entry.self_cpu_time_total / 1e6
        group = group_of(entry.key, entry.input_shapes, rank, vocabulary)
        spent[group] += own
        if entry.key in _PRODUCTS:
            products[group] += own
            flops[group] += entry.count * product_flops(entry.key, entry.input_shapes)
    spent["python"] = seconds - sum(spent.values())
    return {group: {"share": spent[group] / seconds,
                    "gflops": flops[group] / products[group] / 1e9 if products[group] else math.nan}
            for group in GROUPS}


def largest(averages: Iterable[Any], rank: int, vocabulary: int, group: str, seconds: float) -> list[str]:
    """The operations of a group that take most of its time."""
    spent: dict[str, float] = defaultdict(float)
    for entry in averages:
        if group_of(entry.key, entry.input_shapes, rank, vocabulary) == group:
            spent[entry.key.removeprefix("aten::")] += entry.self_cpu_time_total / 1e6
    first = sorted(spent, key=lambda name: -spent[name])[:6]
    return [f"{name} {spent[name] / seconds:.1%}" for name in first]


def main() -> None:
    """Profile one case and print or write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--case", default="main")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    from core.openmp import set_wait_policy

    set_wait_policy(os.environ)  # before torch is imported
    from bench.speed.cases import CASES, FILES, config_of
    from core.models.inspect import read_card
    from core.models.library import resolve

    case = next(case for case in CASES if case.name == args.case)
    config = config_of(case, "starter", args.data / FILES[case.data], case.warm + args.steps)
    averages, seconds, gflops = profile_steps(config, case.warm, args.steps)
    vocabulary = read_card(resolve("starter")).vocabulary
    table = table_of(averages, seconds, case.rank, vocabulary)
    for group, row in table.items():
        print(f"{GROUPS[group]:<50} {row['share']:6.1%} {row['gflops']:8.0f}", file=sys.stderr)
    for group in ("elementwise", "output", "optimizer"):
        print(group, ", ".join(largest(averages, case.rank, vocabulary, group, seconds)), file=sys.stderr)
    print(f"a large product: {gflops:.0f} GFLOP/s; {seconds / args.steps:.2f} s a step", file=sys.stderr)
    if args.json:
        named = {GROUPS[group]: {"share": row["share"], "gflops": row["gflops"] if row["gflops"] > 0 else None}
                 for group, row in table.items()}
        args.json.write_text(json.dumps({"case": case.name, "matrix_gflops": gflops, "seconds": seconds,
                                         "steps": args.steps, "table": named}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
