"""docs/speed.md: the figures of every subject that was measured and kept, and where a step's time goes."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.speed.report import Figure, Found, machine_words, matrix_speeds, table
from core import files
from core.words import plural

PROFILE = "profile"
_HEAD = """# Speed and memory against the targets

SmolLM2-135M, LoRA in fp32 on the CPU, beside peft with the transformers Trainer: the same rows, batch, targets, rank
and rate. Each measurement is a process of its own, both sides in turns within one call of `make bench`; a figure is
the median of the turns, with their range. *Ordinary* is the recipe that most scripts have: rows padded to the longest
of the batch, all logits. *At its best* groups rows by length, leaves out the logits of the prompt where it can, and
has an allocator that gives nothing back. How threads wait for one another is each side's own (ours:
`core/openmp.py`); one line has the peer with ours. A row's tokens count as trained, also those whose work is done
once for several rows. *Share of the roofline*: the operations that LoRA training must do for these rows
(`bench/speed/flops.py`), by the time and by the speed of a large matrix product in the same process."""
_BOUND = """What is no product (norms, softmax, rotary positions, gates, residuals) is not among the operations that
are counted, and products of short rows, as in attention, can not run at the speed of a large one: that bounds the
share of the roofline, and with it how far ahead of another program a step can be.

Nothing is compiled and no CUDA graph is recorded: nearly every pass has another number of tokens and other boundaries
between its rows, for which each would have to be made anew, and a compiler is not on every machine."""


def keep(folder: Path, name: str, machine: dict[str, Any], found: Found) -> None:
    """Write what a subject found, and on what day, to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    speeds = list(matrix_speeds(found.measurements)) or [machine["matrix_gflops"]]
    figures = [figure.plain() for figure in found.figures]
    plain = {"machine": machine, "speeds": speeds, "day": datetime.now(UTC).date().isoformat(), "figures": figures}
    files.write_text(folder / f"{name}.json", json.dumps(plain, indent=1) + "\n")


def write_page(folder: Path, names: list[str], page: Path) -> None:
    """Write the page from what is kept in `folder`, the subjects in the order of `names`."""
    kept = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in [*names, PROFILE] if (folder / f"{name}.json").exists()}
    profile = kept.pop(PROFILE, None)
    lines = [_HEAD, "", *_figures(kept), ""]
    if profile is not None:
        lines += ["## Where a step's time goes", "", _BOUND, "", *_profile(profile), ""]
    files.write_text(page, "\n".join(lines))


def _figures(kept: dict[str, dict[str, Any]]) -> Iterator[str]:
    """One table; a line tells on what machine each of its parts was measured."""
    figures = [_figure(plain) for result in kept.values() for plain in result["figures"]]
    yield from table(figures)
    yield ""
    for name, result in kept.items():
        turns = max(len(figure["values"]) for figure in result["figures"])
        yield (f"- {name}: {plural(turns, 'value')} for a figure, {result['day']}, on "
               f"{machine_words(result['machine'], result['speeds'])}.")


def _figure(plain: dict[str, Any]) -> Figure:
    fields = {name: plain[name] for name in ("name", "limit", "wanted", "form", "note")}
    return Figure(values=tuple(plain["values"]), **fields)


def _profile(profile: dict[str, Any]) -> Iterator[str]:
    """The table of `bench/step_profile.py`."""
    yield "| | share of the time | GFLOP/s of its products |"
    yield "|---|---:|---:|"
    for words, row in profile["table"].items():
        speed = f"{row['gflops']:.0f}" if row["gflops"] is not None else ""
        yield f"| {words} | {row['share']:.1%} | {speed} |"
    yield ""
    yield (f"Case {profile['case']}, {profile['seconds'] / profile['steps']:.1f} s a step under torch's profiler; a "
           f"large product ran at {profile['matrix_gflops']:.0f} GFLOP/s in the same process.")
