"""Jobs without torch for the engine's tests: what they do is written in the request.

`InspectModel("what:argument")` is a short job, `Train(config, run_dir)` a run whose behaviour is
the text in `config.model.path`.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from core import jobs
from core.control import Control
from core.engine.protocol import Ready
from core.errors import CoreError
from core.events import CheckpointSaved, Event, Finished, Note, Progress, Result, Started, StepDone
from core.runs.folder import RunFolder


class FakeRunner:
    def __call__(self, job: jobs.Job, control: Control) -> Iterator[Event]:
        if isinstance(job, jobs.Train):
            return train(job, control)
        assert isinstance(job, jobs.InspectModel), job
        return short(job.model, control)

    def ready(self) -> Ready:
        return Ready(2, "A GPU · 80 GB")

    def warm_up(self, role: str) -> None:
        seconds = os.environ.get("FAKE_WARM_UP_SECONDS")
        if seconds:
            time.sleep(float(seconds))


def short(model: str, control: Control) -> Iterator[Event]:
    what, _, argument = model.partition(":")
    yield Progress("Working", 0, 1)
    if what == "wait":  # obeys
        until = time.monotonic() + float(argument)
        while time.monotonic() < until:
            control.check()
            time.sleep(0.005)
    elif what == "deaf":  # does not obey
        time.sleep(float(argument))
    elif what == "count":
        for number in range(int(argument)):
            yield Progress("Counting", number, int(argument))
    elif what == "text":
        yield Note(argument)
    else:
        end_badly(what, argument)
    yield Result({"pid": os.getpid(), "cwd": str(Path.cwd()), "path": sys.path})


def end_badly(what: str, argument: str) -> None:
    print("last words of the engine", flush=True)
    if what == "exit":
        os._exit(int(argument))
    elif what == "sys-exit":
        sys.exit("a library gives up")
    elif what == "abort":
        os.abort()
    elif what == "segfault":
        ctypes.string_at(0)
    elif what == "raise":
        raise ValueError(argument)
    elif what == "refuse":
        raise CoreError(argument, "a hint")
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "suspend":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "cuda":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    else:
        assert what == "ok", what


def train(job: jobs.Train, control: Control) -> Iterator[Event]:
    """`steps=N` steps with `pause=S` seconds between them; saves a checkpoint where asked."""
    assert job.run_dir is not None
    options = dict(part.split("=") for part in job.config.model.path.split(",") if part)
    run = RunFolder(job.run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    with run.locked():
        run.write_config(job.config)
        yield from run.record(steps(run, int(options.get("steps", 5)), float(options.get("pause", 0)), control,
                                    options.get("loss", "1.0"), int(options.get("note", 0))))


def steps(run: RunFolder, total: int, pause: float, control: Control, loss: str, note: int) -> Iterator[Event]:
    yield Started("train", run.path, time.time(), os.getpid())
    for step in range(1, total + 1):
        control.wait_while_paused()
        if control.stop_requested:
            yield Finished("stopped", run.adapter)
            break
        yield StepDone(step, step / total, float(loss), 1e-3, 0.5, 10, 5, 0.1, 1000)
        if note:
            yield Note("x" * note)
        if control.take_checkpoint_request():
            yield CheckpointSaved(step, run.checkpoint(step), 1, 0.1)
        time.sleep(pause)
    else:
        yield Finished("finished", run.adapter)
    yield Result({"run_dir": str(run.path)})
