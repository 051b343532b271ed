"""Threads of a computation wait awake while the machine is theirs, and asleep while other programs want it.

libgomp lets a waiting thread spin (`core.openmp`) as long as it manages no more threads than there are processors, and
only for an instant where it manages more (gomp_throttled_spin_count_var, do_spin in its config/linux/wait.h). So a few
idle threads more are a switch: they sleep, the results are the same, and two threads beside a busy program on two
cores are twice as fast.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

_TASKS = Path("/proc/self/task")  # only Linux tells how long a thread had to wait for a processor
_LOOK_SECONDS = 0.5
_CONTENDED = 0.2  # seconds of waiting in a second; a program that needs a fifth of a core does not reach it
_CALM_LOOKS = 10  # below half of that, before the long spin returns
_PARALLEL = 2**18  # numbers; torch adds so many with all its threads


@contextlib.contextmanager
def watched_contention(device: torch.device) -> Iterator[None]:
    """Inside, the CPU's threads spin only where no other program wants their processors."""
    if device.type != "cpu" or torch.get_num_threads() < 2 or not waited_seconds():
        yield
        return
    watch = _Watch()
    watch.start()
    try:
        yield
    finally:
        watch.end()


def waited_seconds() -> dict[str, float]:
    """By thread of this process: how long it was ready to compute and had no processor. Empty where not known."""
    waited = {}
    with contextlib.suppress(OSError):
        for task in _TASKS.iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):  # the thread has ended, or nothing is counted
                waited[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return waited


class _Watch(threading.Thread):
    """Looks twice a second whether our threads have to wait for a processor."""

    def __init__(self) -> None:
        super().__init__(name="contention", daemon=True)
        self._over = threading.Event()
        self._spare: _SpareThreads | None = None

    @property
    def contended(self) -> bool:
        """True while the threads wait asleep."""
        return self._spare is not None

    def run(self) -> None:
        before, looked, calm = waited_seconds(), time.monotonic(), 0
        while not self._over.wait(_LOOK_SECONDS):
            now, moment = waited_seconds(), time.monotonic()
            share = sum(seconds - before.get(task, seconds) for task, seconds in now.items()) / (moment - looked)
            before, looked = now, moment
            calm = calm + 1 if share < _CONTENDED / 2 else 0
            if share > _CONTENDED and self._spare is None:
                self._spare = _SpareThreads()
            elif calm >= _CALM_LOOKS:
                self._dismiss()
        self._dismiss()

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self.join()

    def _dismiss(self) -> None:
        if self._spare is not None:
            self._spare.dismiss()
            self._spare = None


class _SpareThreads:
    """As many threads as compute, known to libgomp, that sleep."""

    def __init__(self) -> None:
        self._dismissed = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="spare", daemon=True)
        self._thread.start()

    def dismiss(self) -> None:
        """Let them end."""
        self._dismissed.set()
        self._thread.join()

    def _hold(self) -> None:
        torch.zeros(_PARALLEL).add_(1.0)  # in parallel, for which libgomp makes this thread helpers of its own
        self._dismissed.wait()
