"""How torch's threads wait for one another on the CPU. Must be set before torch is imported."""

from collections.abc import MutableMapping


def set_wait_policy(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads sleep instead of spinning, unless the person has chosen otherwise.

    A thread that spins holds a core. As soon as another program wants one, the thread that is
    waited for does not get it: a training step with two threads on two cores beside one busy
    program took 51 s spinning and 3 s sleeping.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
