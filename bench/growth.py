"""How cost grows with work: length, rank, batch, layers, rows, a file of 1 GB. Writes docs/performance.md and plots.

    python bench/growth.py [--only TEXT] [--again] [--report] [--rows 1000 10000 100000 1000000] [--model starter]
                           [--file FILE]

Each point is a run in a process of its own and leaves one result file in bench/results/growth, so that what was
interrupted goes on. --report writes the page from the results that there are.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.curves.report import page, read  # noqa: E402
from bench.curves.sweeps import SWEEPS, Point, config_of, every_point  # noqa: E402
from bench.filled_rows import write_filled_rows  # noqa: E402
from bench.speed.alone import run_alone  # noqa: E402
from bench.speed.plan import thread_waiting  # noqa: E402
from core import files  # noqa: E402
from core.models.library import resolve  # noqa: E402

ROWS = (1_000, 10_000, 100_000, 1_000_000)
LARGE = "large"


def main() -> int:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="only points whose name holds TEXT")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured before")
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    parser.add_argument("--model", default="starter")
    parser.add_argument("--file", type=Path, help="rows of which the data files are made, as for bench/data.py")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "growth")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        for name, ask in work(str(resolve(options.model)), options.rows, options.file).items():
            if options.only in name and (options.again or not (options.out / f"{name}.json").exists()):
                keep(options.out / f"{name}.json", ask())
    write_report(options.out, ROOT / "docs")
    return 0


def write_report(out: Path, docs: Path) -> None:
    """Write the page and its plots from the results that there are."""
    from bench.curves.plots import draw  # it brings matplotlib

    files.write_text(docs / "performance.md", page(out))
    for sweep in SWEEPS:
        results = read(out, sweep.name)
        if results:
            draw(sweep, results, docs / f"growth-{sweep.name}.svg")


def work(model: str, rows: list[int], file: Path | None = None) -> dict[str, Callable[[], dict[str, float]]]:
    """What is measured, by the name of its result file."""
    points = {sweep.point_name(point): partial(measure, point, model) for sweep, point in every_point()}
    source = () if file is None else ("--file", str(file))
    prepared = {f"rows.{count}": partial(prepare, count, model, *source) for count in rows}
    return {**points, **prepared, LARGE: partial(large_file, model, *source)}


def keep(path: Path, result: dict[str, float]) -> None:
    """Write one result, and tell it."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{path.stem}: " + ", ".join(f"{name} {value:,.4g}" for name, value in result.items()), flush=True)


def measure(point: Point, model: str) -> dict[str, float]:
    """Speed and peak memory of one run, with the operations that it had to do."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        rows = point.batch * (point.warm + point.steps)
        write_filled_rows(data, rows, point.length, " ".join(["again"] * point.instruction) or "Go on.")
        config = config_of(point, model, data)
        answer = run_alone("ours:train_once", {"config": config.model_dump(mode="json"), "warm": point.warm,
                                               "count": True}, Path(folder) / "home", thread_waiting())
    return {name: answer[name] for name in ("tokens", "seconds", "tokens_per_second", "tokens_per_cpu_second",
                                            "peak_rss_bytes", "matrix_gflops", "flops", "estimated_bytes")}


def prepare(rows: int, model: str, *source: str) -> dict[str, float]:
    """Tokenising so many rows and an epoch over them, as bench/data.py measures it."""
    return data_figures(model, "--rows", "0", "--prepare", str(rows), *source)[f"prepare {rows}"]


def large_file(model: str, *source: str) -> dict[str, float]:
    """Opening and scanning a file of 1 GB, as bench/data.py measures it."""
    found = data_figures(model, "--prepare", *source)
    return found["open"] | found["scan"]


def data_figures(model: str, *options: str) -> dict[str, dict[str, float]]:
    """What bench/data.py measures with these options."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "figures.json"
        subprocess.run([sys.executable, str(ROOT / "bench" / "data.py"), model, *options, "--json", str(told)],
                       check=True, stdout=subprocess.DEVNULL)
        return json.loads(told.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
