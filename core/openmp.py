"""How torch's threads wait for one another on the CPU. Must be set before torch is imported."""

from collections.abc import MutableMapping

SPINS = "1000"  # a few microseconds


def set_wait_policy(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads sleep after a short spin, unless the person has chosen otherwise.

    A thread that spins holds a core. As soon as another program wants one, the thread that is
    waited for does not get it: a training step with two threads on two cores beside one busy
    program took 51 s spinning and 3 s sleeping. A thread that sleeps at once has to be woken for
    each of a step's thousand small pieces: with a short spin before, an idle machine did 185
    tokens/s instead of 153, and 82 instead of 101 beside a busy program.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        environment.setdefault("GOMP_SPINCOUNT", SPINS)
