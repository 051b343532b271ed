"""Figures, whether they meet their targets, and the table of them. Plain Python."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SHOWN = {True: "met", False: "MISSED", None: ""}


@dataclass(frozen=True)
class Figure:
    """What was found, one value a turn.

    Args:
        name: what was measured, in words.
        values: one a turn; none where it could not be measured.
        limit: the target; None for a figure that is told beside one.
        wanted: "least": the median must reach the limit; "most": it must not pass it.
        form: how a value is written.
        note: more about it, in a few words.
    """

    name: str
    values: tuple[float, ...]
    limit: float | None = None
    wanted: Literal["least", "most"] = "least"
    form: str = "{:.2f}x"
    note: str = ""

    @property
    def median(self) -> float | None:
        """The figure that is compared with the target."""
        return statistics.median(self.values) if self.values else None

    @property
    def met(self) -> bool | None:
        """None where there is no target or no value."""
        if self.limit is None or self.median is None:
            return None
        return self.median >= self.limit if self.wanted == "least" else self.median <= self.limit

    @property
    def target(self) -> str:
        """The target in words."""
        sign = "≥" if self.wanted == "least" else "≤"
        return "" if self.limit is None else f"{sign} {self.form.format(self.limit)}"

    @property
    def words(self) -> str:
        """Median and range."""
        if self.median is None:
            return "not measured"
        text = self.form.format(self.median)
        if len(self.values) == 1:
            return text
        return f"{text} ({self.form.format(min(self.values))} to {self.form.format(max(self.values))})"

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "median": self.median, "met": self.met}


@dataclass(frozen=True)
class Found:
    """What a subject found: its figures, and what was measured for them."""

    figures: tuple[Figure, ...]
    measurements: dict[str, Any] = field(default_factory=dict)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Ours by theirs, turn by turn: what disturbs a turn disturbs both."""
    return tuple(mine / other for mine, other in zip(ours, theirs, strict=True))


def table(figures: Iterable[Figure]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| | target | found | |"
    yield "|---|---|---|---|"
    for figure in figures:
        name = f"{figure.name} ({figure.note})" if figure.note else figure.name
        yield f"| {name} | {figure.target} | {figure.words} | {SHOWN[figure.met]} |"


def machine_words(machine: dict[str, Any], speeds: Sequence[float]) -> str:
    """The line above the table; `speeds` are GFLOP/s of the matrix products measured during the run."""
    return (f"{machine['device']}, {machine['threads']} threads, {machine['instructions']}; torch {machine['torch']}, "
            f"transformers {machine['transformers']}, peft {machine['peft']}; fp32 matrix products at "
            f"{min(speeds):.0f} to {max(speeds):.0f} GFLOP/s during the measurements")


def matrix_speeds(measurements: Any) -> Iterator[float]:
    """Every "matrix_gflops" in nested measurements."""
    if isinstance(measurements, dict):
        if "matrix_gflops" in measurements:
            yield measurements["matrix_gflops"]
        measurements = measurements.values()
    elif not isinstance(measurements, list | tuple):
        return
    for item in measurements:
        yield from matrix_speeds(item)
