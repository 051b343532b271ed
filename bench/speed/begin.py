"""Start of a run in a warm engine, as bench/start.py measures it."""

from pathlib import Path
from typing import Any

from bench.speed.plan import Plan
from bench.speed.report import Figure, Found

ROWS = 1000
LEAST_STARTS = 5  # one is over in seconds, and any of them may be disturbed


def begin(plan: Plan) -> Found:
    """Several runs in one engine, each on a file that it has not seen."""
    times = 1 if plan.quick else max(plan.turns, LEAST_STARTS)
    found = plan.ask("begin:starts", model=plan.model, data=str(plan.files["alpaca"]), times=times)
    return Found((Figure("Start to the first forward pass, warm engine", tuple(found["seconds"]), 1.5, "most",
                         "{:.2f} s", f"{ROWS:,} rows; the very first run, which proves the computing path, "
                         f"{found['first']:.2f} s"),), {"start": found})


def starts(model: str, data: str, times: int) -> dict[str, Any]:
    """The seconds of every start."""
    from bench.start import measure

    found = measure(model, Path(data), ROWS, times)
    return {"first": found.first, "seconds": found.seconds, "stages": found.stages}
