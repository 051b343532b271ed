"""Does this run fit? A process of its own trains on the longest rows, so that its peak is that of a run.

If the system ends that process for want of memory, this one lives on and says so.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import core
from core import events, jobs
from core.control import Control
from core.errors import Cancelled, CoreError
from core.events import Event, Failed, MemoryMeasured, Result

_POLL_SECONDS = 0.1
_KILLED = -9
_LOG_BYTES = 8192
_HINT = "Try a smaller batch size, a shorter maximum length or a smaller model."


def probe_memory(job: jobs.ProbeMemory, control: Control) -> Iterator[Event]:
    """Measure -> MemoryMeasured, Result(bytes, device, tokens, seconds).

    Raises:
        CoreError: what would keep the run from starting, or the step needs more memory than there is.
        Cancelled: a stop was asked for; the process is gone.
    """
    if job.config.training.parallel == "shard":
        raise CoreError("A step of a base that several GPUs share can not be measured by one process.",
                        "Set training.parallel to auto to measure it on one.")
    with tempfile.TemporaryFile() as log, _process(log) as process:
        lines = _asked(process, json.dumps(jobs.to_plain(job)))
        measured = None
        while (line := _next_line(lines, control)) is not None:
            event = events.from_json(line)
            if isinstance(event, Failed):
                raise CoreError(event.message, event.hint, event.details)
            if isinstance(event, MemoryMeasured):
                measured = event
            yield event
        code = process.wait()
        if measured is None:
            raise _death(code, log)
    yield Result({"bytes": measured.bytes, "device": measured.device, "tokens": measured.tokens,
                  "seconds": measured.seconds})


@contextlib.contextmanager
def _process(log: IO[bytes]) -> Iterator["subprocess.Popen[str]"]:
    """The process that measures; it is gone afterwards."""
    environment = dict(os.environ, PYTHONIOENCODING="utf-8:backslashreplace")
    root = str(Path(core.__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    process = subprocess.Popen([sys.executable, "-P", "-m", "core.training.fit_step"], env=environment, text=True,
                               encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    with process:
        try:
            yield process
        finally:
            process.kill()


def _asked(process: "subprocess.Popen[str]", question: str) -> "queue.Queue[str | None]":
    """Give the process its work; its answers come as lines, at the end None."""
    lines: queue.Queue[str | None] = queue.Queue()
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    def read() -> None:
        for line in stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # it is dead already, which its end tells
        stdin.write(question)
        stdin.close()
    return lines


def _next_line(lines: "queue.Queue[str | None]", control: Control) -> str | None:
    while True:
        if control.stop_requested:
            raise Cancelled()
        with contextlib.suppress(queue.Empty):
            return lines.get(timeout=_POLL_SECONDS)


def _death(code: int, log: IO[bytes]) -> CoreError:
    """The process ended without an answer."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
    details = f"exit code {code}\n{log.read().decode('utf-8', 'replace')}"
    if code == _KILLED:
        return CoreError("The step needs more memory than this machine has: the system ended it.", _HINT, details)
    return CoreError("The measurement ended unexpectedly.", "The report holds the end of its log.", details)
