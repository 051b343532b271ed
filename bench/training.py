"""How fast and how small, against the targets: everything side by side in one call, in turns.

    python bench/training.py [--quick] [--only NAME …] [--json] [--turns 3] [--merge-gb 13.5] [--model starter]
                             [--data FOLDER | --alpaca FILE --wiki FILE --toolcalls FILE] [--keep]
    python bench/training.py --report

Each measurement is a process of its own. The table has the median and the range of the turns; exit code 1 where a
target was missed or a measurement failed. --json prints all of it instead. NAME: see --list. A subject whose file is
not there is left out, and said so. --keep leaves the figures of every subject in bench/results/speed, from which
--report writes docs/speed.md.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.speed.alone import MeasurementFailed  # noqa: E402
from bench.speed.answers import answers  # noqa: E402
from bench.speed.begin import begin  # noqa: E402
from bench.speed.cases import CASES, FILES  # noqa: E402
from bench.speed.compare import compare  # noqa: E402
from bench.speed.curve import curve  # noqa: E402
from bench.speed.merge import merge  # noqa: E402
from bench.speed.page import keep, write_page  # noqa: E402
from bench.speed.plan import Plan  # noqa: E402
from bench.speed.prefix import prefix  # noqa: E402
from bench.speed.report import Figure, Found, machine_words, matrix_speeds, table  # noqa: E402
from core.models.library import resolve  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "speed"
Subject = tuple[str, Callable[[Plan], Found]]  # the data that it needs ("" for none), and what measures it
QUICK_MERGE_GIGABYTES, MERGE_GIGABYTES = 1.3, 13.5
SUBJECTS: dict[str, Subject] = {
    **{case.name: (case.data, partial(compare, case=case)) for case in CASES},
    "curve": ("alpaca", curve), "top-third": ("alpaca", prefix), "answers": ("", answers), "merge": ("", merge),
    "start": ("alpaca", begin),
}


def main() -> int:
    """Measure and print; exit code 1 where a target was missed or a measurement failed."""
    options = parse()
    if options.list:
        print("\n".join(SUBJECTS))
        return 0
    if options.report:
        write_page(RESULTS, list(SUBJECTS), ROOT / "docs" / "speed.md")
        return 0
    plan = planned(options)
    machine = plan.ask("machine:describe")
    figures: list[Figure] = []
    measurements: dict[str, Any] = {}
    failed = []
    for name in options.only or SUBJECTS:
        data, measure = SUBJECTS[name]
        if data and data not in plan.files:
            tell(f"{name}: left out, there is no file of {data} rows; name one with --{data}.")
            continue
        tell(name)
        try:
            found = measure(plan)
        except MeasurementFailed as error:
            tell(f"{name} failed: {error}")
            failed.append(name)
            if options.keep:  # what was found before is not true of this tree
                (RESULTS / f"{name}.json").unlink(missing_ok=True)
            continue
        if options.keep:
            keep(RESULTS, name, machine, found)
        figures += found.figures
        measurements |= found.measurements
        tell("\n".join(f"  {figure.name}: {figure.words}" for figure in found.figures))
    if options.json:
        print(json.dumps({"machine": machine, "quick": plan.quick, "figures": [figure.plain() for figure in figures],
                          "failed": failed, "measurements": measurements}, indent=2))
    else:
        speeds = [machine["matrix_gflops"], *matrix_speeds(measurements)]
        print("\n".join([machine_words(machine, speeds), "", *table(figures)]))
    return int(bool(failed) or any(figure.met is False for figure in figures))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps and one turn: a trial, not a figure")
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), metavar="NAME", help="only these subjects")
    parser.add_argument("--keep", action="store_true", help="leave the figures in bench/results/speed")
    parser.add_argument("--report", action="store_true", help="only write docs/speed.md from what was kept")
    parser.add_argument("--list", action="store_true", help="name the subjects")
    parser.add_argument("--json", action="store_true", help="print figures and measurements as JSON")
    parser.add_argument("--turns", type=int, help="how often everything is measured (3, quick: 1)")
    parser.add_argument("--merge-gb", type=float, help="size of the model that is merged (13.5, quick: 1.3)")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data",
                        help=f"folder that holds {', '.join(FILES.values())}")
    for name in FILES:
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.keep and (options.quick or options.model != "starter" or options.merge_gb):
        parser.error("only figures of the starter model and of the whole subjects are kept")
    return options


def planned(options: argparse.Namespace) -> Plan:
    """What the command line asks for, with the files that are there."""
    files = {name: getattr(options, name) or options.data / file for name, file in FILES.items()}
    return Plan(str(resolve(options.model)), {name: file.resolve() for name, file in files.items() if file.is_file()},
                options.quick, options.turns or (1 if options.quick else 3),
                options.merge_gb or (QUICK_MERGE_GIGABYTES if options.quick else MERGE_GIGABYTES))


def tell(words: str) -> None:
    """How far it is, beside the result."""
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
