"""The most memory that this process has held so far, on every system. Plain Python."""

import re
import sys
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def peak_bytes() -> int:
    """Resident bytes at the peak."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    if _STATUS.exists():  # getrusage would count the process that started this one as well
        found = _PEAK.search(_STATUS.read_text(encoding="ascii", errors="replace"))
        if found is not None:
            return int(found[1]) * 1024
    import resource  # noqa: PLC0415 -- Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
