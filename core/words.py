"""Numbers in words for people: rounded, with their unit."""

import math


def count(value: float) -> str:
    """A count: 999, 1,000, 75 k, 134.5 M, 1.24 B."""
    if value < 10_000:
        return f"{value:,.0f}"
    for limit, divisor, unit in ((999_500, 1e3, "k"), (999_500_000, 1e6, "M"), (math.inf, 1e9, "B")):
        if value < limit:
            scaled = value / divisor
            digits = 0 if unit == "k" else (1 if scaled < 999.95 else 0)
            return f"{scaled:.{digits}f} {unit}"
    return str(value)


def size(value: float) -> str:
    """Bytes in decimal units, as file managers show them: 12 kB, 269 MB, 1.2 GB."""
    if value < 1000:
        return f"{value:.0f} B"
    for divisor, unit in ((1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")):
        scaled = value / divisor
        if scaled < 999.5 or unit == "TB":
            return f"{scaled:.1f} {unit}" if scaled < 9.95 else f"{scaled:.0f} {unit}"
    return str(value)


def memory(value: float) -> str:
    """Memory: 310 MB, 1.4 GB, 23.0 GB is written 23 GB."""
    return size(value)


def duration(seconds: float) -> str:
    """A time span: 8 s, 3 min, 1 h 20 min; "" where it is not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return ""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return hours(minutes) if minutes < 48 * 60 else f"{minutes // 60 / 24:.0f} days"


def time_left(seconds: float) -> str:
    """A time span that does not flicker: under 10 s, 40 s, 4 min, 1 h 20 min; "" where it is not known."""
    if not math.isfinite(seconds):
        return ""
    if seconds < 10:
        return "under 10 s"
    if seconds < 90:
        return f"{round(seconds / 10) * 10} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return hours(round(minutes / 5) * 5)


def hours(minutes: int) -> str:
    """From an hour on: 1 h, 1 h 20 min."""
    whole, rest = divmod(minutes, 60)
    return f"{whole} h {rest} min" if rest else f"{whole} h"


def percent(share: float) -> str:
    """A share of 1: 3.4%, 0.34%, 100%."""
    value = share * 100
    if value == 0 or value >= 99.95:
        return f"{value:.0f}%"
    return f"{value:.1f}%" if value >= 0.95 else f"{value:.2g}%"


def plural(number: int, one: str, many: str = "") -> str:
    """`1 row`, `1,000 rows`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
