"""Does it learn? Methods, ranks and target layers compared on one model with the same data and seeds.

    python bench/methods.py [--quick] [--only TEXT] [--out FOLDER] [--alpaca FILE]
    python bench/methods.py --list | --report

Each cell is a process of its own and leaves one result file in bench/results/methods, so that a study that was
interrupted goes on where it was. --report writes docs/methods.md and docs/methods.svg from the results that there are.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.study.cells import Cell, cells, quick_cells  # noqa: E402
from bench.study.latency import NAME as LATENCY  # noqa: E402
from bench.study.report import write_report  # noqa: E402
from core.control import Control  # noqa: E402
from core.openmp import set_wait_policy  # noqa: E402

STEPS, QUICK_STEPS = {"orders": 150, "alpaca": 50}, {"orders": 40, "alpaca": 20}
HELD_OUT_ROWS, QUICK_HELD_OUT_ROWS = 160, 24


def main() -> int:
    """Run what is missing; 1 where a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few cells, few steps: under ten minutes on two cores")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cells whose name holds TEXT")
    parser.add_argument("--list", action="store_true", help="name the cells and say which are done")
    parser.add_argument("--report", action="store_true", help="write docs/methods.md and docs/methods.svg")
    parser.add_argument("--out", type=Path, help="folder of the result files (default: bench/results/methods)")
    parser.add_argument("--steps", type=int, help="steps of each run, for a trial")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, one thread each")
    parser.add_argument("--alpaca", type=Path, default=ROOT.parent / "shared" / "data" / "alpaca_en_demo.json",
                        help="instruction rows for the general task")
    parser.add_argument("--model", default="starter")
    options = parser.parse_args()
    out = options.out or (ROOT / "build" / "methods-quick" if options.quick else ROOT / "bench" / "results" / "methods")
    out.mkdir(parents=True, exist_ok=True)
    if options.report:
        write_report(out, ROOT / "docs")
        return 0
    chosen = [cell for cell in (quick_cells() if options.quick else cells()) if options.only in cell.name]
    if options.list:
        for cell in chosen:
            print(f"{'done' if (out / f'{cell.name}.json').exists() else 'open'}  {cell.name}")
        return 0
    if options.model == "starter":
        from core.models.starter import ensure_starter  # it brings torch

        for _ in ensure_starter(Control()):
            pass
    return run_all(chosen, options, out)


def run_all(chosen: list[Cell], options: argparse.Namespace, out: Path) -> int:
    """Every cell that has no result yet, one for each core at a time, then the latency of the three ways to answer."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    set_wait_policy(environment)
    alone = dict(environment, OMP_NUM_THREADS="1")
    missing = [cell for cell in chosen if not (out / f"{cell.name}.json").exists()]
    if not options.alpaca.is_file():
        if any(cell.task == "alpaca" for cell in missing):
            print(f"There is no {options.alpaca.name}: the general task is left out.")
        missing = [cell for cell in missing if cell.task != "alpaca"]
    # One thread a cell: nothing waits for a second one, and the processor's seconds are those of the work alone.
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(lambda cell: run_one(cell, options, out, alone), missing))
    failed = [cell.name for cell, code in zip(missing, codes, strict=True) if code]
    if not (out / f"{LATENCY}.json").exists() and options.only in LATENCY:
        command = [sys.executable, "-m", "bench.study.latency", "--out", str(out), "--model", options.model]
        failed += [LATENCY] * bool(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)
    if failed:
        print(f"Failed: {', '.join(failed)}")
    return int(bool(failed))


def run_one(cell: Cell, options: argparse.Namespace, out: Path, environment: dict[str, str]) -> int:
    """One cell in a process of its own; its exit status."""
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)[cell.task]
    heldout = QUICK_HELD_OUT_ROWS if options.quick else HELD_OUT_ROWS
    command = [sys.executable, "-m", "bench.study.run_cell", cell.name, "--out", str(out), "--steps", str(steps),
               "--heldout", str(heldout), "--alpaca", str(options.alpaca), "--model", options.model]
    started = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    print(f"{cell.name}: {'failed' if code else 'done'} in {time.monotonic() - started:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
