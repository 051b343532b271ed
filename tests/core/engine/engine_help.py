"""What the tests of the engine share."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from core.config import ModelConfig, RunConfig
from core.control import Control
from core.engine.client import EngineClient
from core.errors import EngineError
from core.jobs import Train

MakeClient = Callable[..., EngineClient]
posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def fake_run(folder: Path, **options: object) -> Train:
    """A request for the run in fake_jobs."""
    text = ",".join(f"{key}={value}" for key, value in options.items())
    return Train(RunConfig(model=ModelConfig(path=text)), folder)


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_in_thread(client: EngineClient, job: object, control: Control) -> tuple[threading.Thread, list]:
    """Drive a job in the background; an exception is appended as the last item."""
    seen: list = []

    def drive() -> None:
        try:
            for event in client.run(job, control):  # type: ignore[arg-type]
                seen.append(event)
        except EngineError as error:
            seen.append(error)

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    return thread, seen
