"""The text of docs/performance.md, from whatever results there are."""

import json
from collections.abc import Iterator
from pathlib import Path

from bench.curves.sweeps import SWEEPS, Sweep

Results = dict[int, dict[str, float]]  # by the quantity that grows

ROWS_THEORY = ("Rows lie on the disk and are read as they are needed: memory must not grow with their number. "
               "Tokenising takes the same time for each row, the second time it is read from what was kept.")


def page(out: Path) -> str:
    """The page as Markdown; it shows a plot `growth-SWEEP.svg` for each sweep of which there are results."""
    lines = ["# Cost against work", "", (
        "Measured by `make growth` with the starter model (SmolLM2-135M) in fp32 on the CPU; each point is a run in a "
        "process of its own. The dashed line is theory: the operations that a run must do (`bench/speed/flops.py`) "
        "at the speed that the sweep's median point reaches. *Share* is the part of the speed of a large matrix "
        "product, measured in the same process, that these operations ran at."), ""]
    for sweep in SWEEPS:
        results = read(out, sweep.name)
        if results:
            lines += section(sweep, results)
    rows = read(out, "rows")
    if rows:
        lines += rows_section(rows)
    large = out / "large.json"
    if large.exists():
        lines += large_section(json.loads(large.read_text(encoding="utf-8")))
    return "\n".join(lines)


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


def large_section(found: dict[str, float]) -> Iterator[str]:
    """What the Data page does with a file of 1 GB."""
    yield from ("## A file of 1 GB", "", (
        f"JSON lines, {found['rows']:,.0f} rows of 1,000 bytes. On a warm engine its format is recognised after "
        f"{found['recognised_seconds']:.2f} s and its first row is shown, token by token, after "
        f"{found['shown_seconds']:.2f} s. The whole file is read and checked at "
        f"{found['megabytes_per_second']:.0f} MB/s ({found['read_seconds']:.1f} s), then {found['sampled']:,.0f} rows "
        f"are tokenised for the histogram ({found['whole_seconds']:.1f} s in all); the process has "
        f"{found['peak_megabytes']:.0f} MB at most, {found['peak_before_megabytes']:.0f} MB of them before."), "")
