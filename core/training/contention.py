"""Threads of a computation wait awake while the machine is theirs, and asleep while other programs want it.

libgomp lets a waiting thread spin (`core.openmp`) as long as it manages no more threads than there are processors, and
only for an instant where it manages more (gomp_throttled_spin_count_var, do_spin in its config/linux/wait.h). So a few
idle threads more are a switch: they sleep, the results are the same, and two threads beside a busy program on two
cores are twice as fast.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from core.openmp import sees_contention

_log = logging.getLogger(__name__)
_TASKS = Path("/proc/self/task")
_LOOK_SECONDS = 0.5
_CONTENDED = 0.2  # seconds of waiting in a second; a program that needs a fifth of a core does not reach it
_CALM_LOOKS = 10  # below half of that, before the long spin returns
_PARALLEL = 2**18  # numbers; torch adds so many with all its threads
_MOST_TEAMS = 4  # more are needed only where few threads compute on many processors, and have room


@contextlib.contextmanager
def watched_contention() -> Iterator[None]:
    """Inside, the threads that compute on the CPU spin only while no other program wants their processors."""
    teams = teams_needed(torch.get_num_threads(), _processors())
    if not 1 <= teams <= _MOST_TEAMS or not sees_contention():
        yield
        return
    watch = _Watch(teams)
    watch.start()
    try:
        yield
    finally:
        watch.end()


def teams_needed(threads: int, processors: int) -> int:
    """How many more teams of `threads` make libgomp manage more threads than there are processors; 0: none would.

    It counts one, and for every team those that help the thread that has made it.
    """
    return 0 if threads < 2 else (processors - threads) // (threads - 1) + 1


def _processors() -> int:
    """As libgomp counts them: logical ones that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


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

    def __init__(self, teams: int) -> None:
        super().__init__(name="contention", daemon=True)
        self._teams = teams
        self._over = threading.Event()
        self._spare: _SpareThreads | None = None

    @property
    def contended(self) -> bool:
        """True while the threads wait asleep."""
        return self._spare is not None

    def run(self) -> None:
        try:
            self._look()
        except RuntimeError:  # no thread can be started any more
            _log.exception("from now on it is not seen whether other programs want the processors")
        self._dismiss()

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        if threading.current_thread() is not self:  # as where the garbage collection of this thread ends a computation
            self.join()

    def _look(self) -> None:
        before, looked, calm = waited_seconds(), time.monotonic(), 0
        while not self._over.wait(_LOOK_SECONDS):
            now, moment = waited_seconds(), time.monotonic()
            share = sum(seconds - before.get(task, seconds) for task, seconds in now.items()) / (moment - looked)
            before, looked = now, moment
            calm = calm + 1 if share < _CONTENDED / 2 else 0
            if share > _CONTENDED and self._spare is None:
                self._spare = _SpareThreads(self._teams)
            elif calm >= _CALM_LOOKS:
                self._dismiss()

    def _dismiss(self) -> None:
        if self._spare is not None:
            self._spare.dismiss()
            self._spare = None


class _SpareThreads:
    """Teams of threads that libgomp knows, and that sleep."""

    def __init__(self, teams: int) -> None:
        self._dismissed = threading.Event()
        self._threads = [threading.Thread(target=self._hold, name="spare", daemon=True) for _ in range(teams)]
        for thread in self._threads:
            thread.start()

    def dismiss(self) -> None:
        """Let them end."""
        self._dismissed.set()
        for thread in self._threads:
            thread.join()

    def _hold(self) -> None:
        torch.zeros(_PARALLEL).add_(1.0)  # in parallel, for which libgomp makes this thread helpers of its own
        self._dismissed.wait()
