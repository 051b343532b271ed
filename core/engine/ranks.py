"""An engine of several processes of this machine: the first one serves the window, the others compute with it.

    torchrun --standalone --nproc-per-node gpu -m core.engine.ranks --role train --state-file PATH

The first is an ordinary `core.engine.server`. It passes its one job on through torchrun's store; the others do it
too, and their events go nowhere.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import psutil
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from core import jobs
from core.control import Control
from core.engine import server
from core.engine.job_table import JobRunner
from core.errors import ToldElsewhere
from core.events import Event
from core.launch import place

_JOB, _FIRST = "job", "process"
_LOOK_SECONDS = 0.1


class FirstRunner(JobRunner):
    """Does a job as any engine does, after it has passed it on."""

    def __init__(self) -> None:
        super().__init__()
        self._store = _open_store()
        self._store.set(_FIRST, str(os.getpid()))

    def __call__(self, job: jobs.Job, control: Control) -> Iterator[Event]:
        """The events of a job; raises what the job raises."""
        self._store.set(_JOB, jobs.to_json(job))
        return super().__call__(job, control)


def follow() -> None:
    """Wait for the job of the first process and do this one's share of it; end with the first one."""
    store, runner = _open_store(), JobRunner()
    runner.warm_up("train")
    first = int(store.get(_FIRST))
    while not store.check([_JOB]):
        if not psutil.pid_exists(first):
            return
        time.sleep(_LOOK_SECONDS)
    with suppress(ToldElsewhere):  # the first one tells it to the window
        for _ in runner(jobs.from_json(store.get(_JOB)), Control()):
            pass


def _open_store() -> PrefixStore:
    store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(minutes=5))))
    return PrefixStore("engine", store)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of each process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if place().first:
        server.main([*given, "--runner", "core.engine.ranks:FirstRunner"])
    else:
        follow()


if __name__ == "__main__":
    main()
