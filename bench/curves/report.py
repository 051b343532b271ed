"""docs/performance.md and its plots, from whatever results there are."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.curves.sweeps import SWEEPS, Sweep
from core import files

BLUE, ORANGE = "#0072B2", "#D55E00"
Results = dict[int, dict[str, float]]  # by the quantity that grows

ROWS_THEORY = ("Rows lie on the disk and are read as they are needed: memory must not grow with their number. "
               "Tokenising takes the same time for each row, the second time it is read from what was kept.")


def write_report(out: Path, docs: Path) -> None:
    """Write the page and one plot for each sweep."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "plots", "font.size": 9, "axes.spines.top": False})
    lines = ["# Cost against work", "", (
        "Measured by `make growth` with the starter model (SmolLM2-135M) in fp32 on the CPU; each point is a run in a "
        "process of its own. The dashed line is theory: the operations that a run must do (`bench/speed/flops.py`) "
        "at the speed that the sweep's median point reaches. *Share* is the part of the speed of a large matrix "
        "product, measured in the same process, that these operations ran at."), ""]
    for sweep in SWEEPS:
        results = read(out, sweep.name)
        if results:
            draw(sweep, results, docs / f"growth-{sweep.name}.svg")
            lines += section(sweep, results)
    rows = read(out, "rows")
    if rows:
        lines += rows_section(rows)
    files.write_text(docs / "performance.md", "\n".join(lines))


def read(out: Path, name: str) -> Results:
    """The results of a sweep, in the order of its quantity."""
    found = {int(path.name.split(".")[1]): json.loads(path.read_text(encoding="utf-8"))
             for path in out.glob(f"{name}.*.json")}
    return dict(sorted(found.items()))


def share(result: dict[str, float]) -> float:
    """Operations a second as a part of a matrix product's."""
    return result["flops"] / result["seconds"] / 1e9 / result["matrix_gflops"]


def section(sweep: Sweep, results: Results) -> Iterator[str]:
    """Heading, theory, plot, table."""
    speeds = [result["matrix_gflops"] for result in results.values()]
    yield from (f"## {sweep.title}", "", sweep.theory, "", f"![{sweep.title}](growth-{sweep.name}.svg)", "")
    yield f"| {sweep.quantity} | tokens/s | GFLOP a token | share | peak memory | estimated |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: |"
    for x, result in results.items():
        yield (f"| {x:,} | {result['tokens_per_second']:.0f} | {result['flops'] / result['tokens'] / 1e9:.3f} | "
               f"{share(result):.0%} | {result['peak_rss_bytes'] / 1e9:.2f} GB | "
               f"{result['estimated_bytes'] / 1e9:.2f} GB |")
    yield from ("", f"Matrix products ran at {min(speeds):.0f} to {max(speeds):.0f} GFLOP/s.", "")


def rows_section(rows: Results) -> Iterator[str]:
    """The table of prepared rows."""
    yield from ("## Rows", "", ROWS_THEORY, "")
    yield "| rows | tokenised | again | rows/s | a batch of 8 | peak while tokenising | peak over an epoch |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for x, found in rows.items():
        yield (f"| {x:,} | {found['first_seconds']:.1f} s | {found['again_seconds']:.1f} s | "
               f"{x / found['first_seconds']:,.0f} | {found['batch_milliseconds']:.2f} ms | "
               f"{found['prepare_peak_megabytes']:.0f} MB | {found['epoch_peak_megabytes']:.0f} MB |")
    yield ""


def draw(sweep: Sweep, results: Results, path: Path) -> None:
    """Time of a token beside theory, and memory beside the estimate."""
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    time, memory = figure.subplots(1, 2)
    places = list(results)
    rate = statistics.median(result["flops"] / result["seconds"] for result in results.values())
    measured = [1000 * result["seconds"] / result["tokens"] for result in results.values()]
    theory = [1000 * result["flops"] / result["tokens"] / rate for result in results.values()]
    time.plot(places, measured, "o-", color=BLUE, label="measured")
    time.plot(places, theory, "--", color=ORANGE, label="theory")
    time.set_ylabel("milliseconds a token")
    memory.plot(places, [result["peak_rss_bytes"] / 1e9 for result in results.values()], "o-", color=BLUE,
                label="measured")
    memory.plot(places, [result["estimated_bytes"] / 1e9 for result in results.values()], "--", color=ORANGE,
                label="estimated")
    memory.set_ylabel("peak memory, GB")
    for plot in (time, memory):
        plot.margins(y=0.1)
        plot.set_ylim(bottom=0)
        plot.set_xlabel(sweep.quantity)
        if sweep.doubling:
            plot.set_xscale("log", base=2)
        plot.set_xticks(places, [f"{place:,}" for place in places])
        plot.minorticks_off()
        plot.grid(visible=True, alpha=0.25)
        plot.legend(frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
