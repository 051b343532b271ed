"""What every subject is given: the model, the files, how long to measure, and how to say what goes on."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.speed.alone import run_alone
from core.openmp import set_wait_policy


@dataclass(frozen=True)
class Plan:
    """The settings of a whole benchmark. `files` are those of the cases that are there."""

    model: str
    files: dict[str, Path]
    quick: bool
    turns: int
    merge_gigabytes: float

    def ask(self, task: str, settings: Mapping[str, str] | None = None, **request: Any) -> dict[str, Any]:
        """One measurement in a process and with a data folder of its own.

        `settings` are its environment variables; None: those that the program gives the processes that compute.
        """
        print(f"  {task} {request.get('recipe', '')}".rstrip(), file=sys.stderr, flush=True)
        with scratch() as home:
            return run_alone(task, request, home, thread_waiting() if settings is None else settings)


def thread_waiting() -> dict[str, str]:
    """How our threads wait for one another, as environment variables."""
    found: dict[str, str] = {}
    set_wait_policy(found)
    return found


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="workbench-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
