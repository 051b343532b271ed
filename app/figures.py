"""Numbers of a run in words for people, as the pages show them."""

import math

from core import words

NOT_KNOWN = "—"


def number(value: float) -> str:
    """Four significant digits: 0.8421, 12.35, 1,234, 1.2e-4; a dash where it is not known."""
    if math.isnan(value):
        return NOT_KNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if size >= 100:
        return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}"
    return f"{value:#.4g}" if size else "0"


def loss(value: float) -> str:
    """A loss: 0.842, 2.10; "not a number" said as such."""
    if math.isnan(value):
        return "NaN"
    return number(value) if not math.isfinite(value) or abs(value) >= 100 else f"{value:.3f}"


def amount_done(done: int, total: int, unit: str) -> str:
    """How far a job is: 1 of 272 tensors, 12.3 MB of 269 MB; empty where the end is not known."""
    if not total:
        return ""
    if unit == "bytes":
        return f"{words.size(done)} of {words.size(total)}"
    return f"{done:,} of {total:,} {unit}".rstrip()


def clock(seconds: float) -> str:
    """Time since the beginning: 0:42, 12:05, 1:02:03."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def span(seconds: float) -> str:
    """How long something took: 0.8 s, 42 s, 3 min 12 s, 1 h 5 min."""
    if not math.isfinite(seconds):
        return NOT_KNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return words.hours(minutes)


def time_left(seconds: float) -> str:
    """As `words.time_left`; a dash where it is not known."""
    return words.time_left(seconds) or NOT_KNOWN
