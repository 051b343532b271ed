"""One plot for each sweep: the time of a token beside theory, and memory beside the estimate."""

import statistics
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.curves.report import Results
from bench.curves.sweeps import Sweep

BLUE, ORANGE = "#0072B2", "#D55E00"
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "plots", "font.size": 9, "axes.spines.top": False})


def draw(sweep: Sweep, results: Results, path: Path) -> None:
    """Write the plot of a sweep as an SVG file."""
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
