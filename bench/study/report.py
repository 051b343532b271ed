"""docs/methods.md and docs/methods.svg, from whatever result files there are."""

import json
import statistics
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from bench.study import cells as study
from bench.study.claims import Results, claims, noise
from bench.study.latency import NAME as LATENCY
from core import files

REMARK = "remark.txt"  # beside the results: what is to be known of them all
WIDTH, BAR, LEFT, GAP = 860, 18, 270, 8


def write_report(out: Path, docs: Path) -> None:
    """Write the table, the claims and the picture."""
    results, latency = read_results(out)
    remark = out / REMARK
    text = "\n".join(_page(results, latency, remark.read_text(encoding="utf-8") if remark.exists() else ""))
    files.write_text(docs / "methods.md", text + "\n")
    files.write_text(docs / "methods.svg", picture(results))
    print(f"{docs / 'methods.md'} and methods.svg: {sum(map(len, results.values()))} runs")


def read_results(out: Path) -> tuple[Results, dict[str, Any] | None]:
    """All results by task and variant, and the latency if it was measured."""
    results: Results = {}
    for path in sorted(out.glob("*.seed*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        results.setdefault((result["task"], result["variant"]), []).append(result)
    latency = out / f"{LATENCY}.json"
    return results, json.loads(latency.read_text(encoding="utf-8")) if latency.exists() else None


def _page(results: Results, latency: dict[str, Any] | None, remark: str) -> Iterable[str]:
    yield "# Methods compared\n"
    yield ("SmolLM2-135M-Instruct on the CPU in fp32; the same rows in the same order for the same number of steps. "
           "Made by `make study`; `bench/study/` holds the rules.\n")
    if remark:
        yield remark
    yield "![Validation loss by method](methods.svg)\n"
    for task, words in (("orders", "The sample task: orders in free text to JSON"),
                        ("alpaca", "General instructions: Alpaca rows")):
        rows = [(variant, found) for variant in study.variants() if (found := results.get((task, variant.name)))]
        yield f"## {words}\n"
        if not rows:
            yield "Not measured.\n"
            continue
        yield from _table(task, rows)
        if (spread := noise(results, task)) is not None:
            yield (f"Differences in validation loss move by up to {spread:.3f} between seeds: less is chance. Each "
                   "seed holds out other rows, so a mean of several seeds does not compare with a single run (seed 0); "
                   "the claims below are judged seed by seed.\n")
    yield "## The article's claims\n"
    yield from (f"- {sentence}" for sentence in claims(results, latency))
    yield "\n## How it was done\n"
    yield (study.__doc__ or "").strip()


def _table(task: str, rows: list[tuple[study.Variant, list[dict[str, Any]]]]) -> Iterable[str]:
    scored = task == "orders"
    yield ("| method | trained | validation loss |" + (" exact match |" if scored else "")
           + " seeds | CPU seconds | memory |")
    yield "|---|---:|---:|" + ("---:|" if scored else "") + "---:|---:|---:|"
    for variant, found in rows:
        cells = [variant.title, f"{found[0]['trainable_parameters']:,}",
                 spread_words(found, "validation_loss", "{:.3f}")]
        if scored:
            cells.append(spread_words(found, "exact_match", "{:.1%}"))
        cells += [str(len(found)), f"{middle(found, 'cpu_seconds'):.0f}",
                  f"{middle(found, 'peak_rss_bytes') / 1e9:.1f} GB"]
        yield f"| {' | '.join(cells)} |"
    speeds = [result["matrix_gflops"] for _, found in rows for result in found]
    first = rows[0][1][0]
    yield (f"\n{first['steps']} steps, {first['tokens']:,} tokens. Seconds are those of the processor, on one "
           f"thread; other work ran beside it, and matrix products reached {min(speeds):.0f} to "
           f"{max(speeds):.0f} GFLOP/s.\n")


def middle(found: list[dict[str, Any]], key: str) -> float:
    """The median over the seeds."""
    return statistics.median(result[key] for result in found)


def spread_words(found: list[dict[str, Any]], key: str, form: str) -> str:
    """The mean over the seeds, with the range where there are several."""
    values = [result[key] for result in found if key in result]
    if not values:
        return "-"
    text = form.format(statistics.mean(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def picture(results: Results) -> str:
    """Validation loss as bars, one for each variant, both tasks below each other; no library is needed for it."""
    parts: list[str] = []
    y = 0
    for task in study.TASKS:
        rows = [(variant.title, middle(found, "validation_loss")) for variant in study.variants()
                if (found := results.get((task, variant.name)))]
        if not rows:
            continue
        y += 34
        parts.append(f'<text x="{LEFT}" y="{y}" font-weight="600">{escape(task)}: validation loss</text>')
        y += 12
        largest = max(value for _, value in rows)
        for title, value in rows:
            length = (WIDTH - LEFT - 70) * value / largest
            parts += [f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(title)}</text>',
                      f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="#0072B2"/>',
                      f'<text x="{LEFT + length + 6:.1f}" y="{y + 13}">{value:.3f}</text>']
            y += BAR + GAP
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 16}" font-family="sans-serif" '
            f'font-size="13"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n')
