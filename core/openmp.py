"""How torch's threads wait for one another on the CPU. Must be set before torch is imported."""

import sys
from collections.abc import MutableMapping

SPINS = "20000"  # half a millisecond or so
BLOCKTIME = "1"  # milliseconds; the same for the OpenMP of LLVM and Intel (macOS, Windows, some builds for Linux)
_ITS_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def set_wait_policy(environment: MutableMapping[str, str]) -> None:
    """Let a waiting thread stay awake for a moment before it sleeps, unless the person has chosen otherwise.

    A thread that sleeps has to be woken for each of a step's thousand small pieces: with a spin of 1,000 an idle
    machine of two cores did 118 and 109 tokens/s, with 20,000 131 and 138. But a thread that spins holds a core that
    another program may want, and the thread that is waited for may be the one that does not get it: beside a program
    that keeps one core busy, 74 tokens/s became 37. So the long spin is for when the machine is ours;
    `core.training.contention` sees when it is not, and libgomp then takes the short spin, which is 1,000 where the
    policy is called active.
    """
    if any(name in environment for name in _ITS_OWN):
        return
    environment["KMP_BLOCKTIME"] = BLOCKTIME
    if sys.platform == "linux":
        environment["OMP_WAIT_POLICY"] = "ACTIVE"
        environment["GOMP_SPINCOUNT"] = SPINS
