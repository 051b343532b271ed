"""How torch's threads wait for one another on the CPU. Must be set before torch is imported."""

import sys
from collections.abc import MutableMapping
from pathlib import Path

SPINS, FEW_SPINS = "20000", "1000"  # half a millisecond or so, and some microseconds
_STATISTICS = Path("/proc/self/schedstat")


def set_wait_policy(environment: MutableMapping[str, str]) -> None:
    """Let a waiting thread stay awake for a moment before it sleeps, unless the person has chosen otherwise.

    A thread that sleeps has to be woken for each of a step's thousand small pieces: with a spin of 1,000 an idle
    machine of two cores did 118 and 109 tokens/s, with 20,000 131 and 138. But a thread that spins holds a core that
    another program may want, and the thread that is waited for may be the one that does not get it: beside a program
    that keeps one core busy, 74 tokens/s became 37. So the long spin is only for where `core.training.contention` can
    see that the machine is not ours, and make libgomp take its short spin, which is 1,000 where the policy is active.
    """
    if "OMP_WAIT_POLICY" in environment:
        return
    if sees_contention():
        environment["OMP_WAIT_POLICY"] = "ACTIVE"
        environment.setdefault("GOMP_SPINCOUNT", SPINS)
        environment.setdefault("KMP_BLOCKTIME", "1")  # in an OpenMP of another make "active" alone would spin for ever
    else:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        environment.setdefault("GOMP_SPINCOUNT", FEW_SPINS)


def sees_contention() -> bool:
    """True where the system tells how long a thread had to wait for a processor: on most Linux kernels."""
    if sys.platform != "linux":
        return False
    try:
        return any(int(number) for number in _STATISTICS.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return False
