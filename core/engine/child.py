"""Starting, watching and ending the engine's operating-system process."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from datetime import datetime
from pathlib import Path

import psutil

import core
from core import files
from core.engine.protocol import Address
from core.errors import EngineError
from core.launch import torchrun
from core.openmp import set_wait_policy
from core.paths import cache_root, logs_root

# the child outlives the window and its terminal; `start_new_session` does that where there is POSIX
if sys.platform == "win32":
    _DETACHED = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS
else:
    _DETACHED = 0
_KEPT_LOGS = 20
_TAIL_BYTES = 8192
_OUT_OF_MEMORY_HINT = (
    "The system ends a process like this when memory runs out: try a smaller batch size, a shorter "
    "maximum length or a smaller model. A run can be resumed from its last checkpoint."
)
_CRASH_HINT = "Try again; a run can be resumed from its last checkpoint. The report holds the end of the engine's log."


class Child:
    """A started engine process.

    Args:
        role: "train" or "work".
        runner: "module:factory" of what does the jobs; "" is the real one.
        linger_seconds: how long it stays without a client and without work.
        processes: how many compute together, as torchrun takes it ("gpu": one for each GPU); "" is one alone.

    Raises:
        OSError: the process can not be started or the log not be written.
    """

    def __init__(self, role: str, runner: str, linger_seconds: float, processes: str = "") -> None:
        name = f"{role}-{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        self.log_path = logs_root() / f"engine-{name}.log"
        self._state_file = cache_root() / "engines" / f"{name}.json"
        _remove_old_logs(self.log_path.parent)
        options = ["--role", role, "--state-file", str(self._state_file), "--log-file", str(self.log_path),
                   "--linger-seconds", str(linger_seconds)]
        options += ["--runner", runner] if runner else []
        command = torchrun(processes, "core.engine.ranks", options) if processes else \
            [sys.executable, "-m", "core.engine.server", *options]
        with files.open_log(self.log_path) as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=_environment(), start_new_session=True, creationflags=_DETACHED)
        self._ended_by_us = False

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """True until the process has ended."""
        return self._process.poll() is None

    def wait_for_address(self, seconds: float) -> Address:
        """Where it listens, once it does.

        Raises:
            EngineError: it ended before, or did not listen in this time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                return Address.read(self._state_file)
            if not self.is_alive():
                raise self.death()
            time.sleep(0.02)
        self.kill()
        raise EngineError("The engine did not start.", "Copy the report; it holds the end of the engine's log.",
                          f"no address after {seconds:.0f} s\n{tail(self.log_path)}")

    def wait(self, seconds: float) -> bool:
        """Wait for its end; True if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return not self.is_alive()

    def kill(self) -> None:
        """End the process for certain, also one that hangs or is suspended, and what it started."""
        self._ended_by_us = True
        if self.is_alive():
            kill_tree(self.pid)
            self.wait(5.0)
        self.forget_address()

    def forget_address(self) -> None:
        """Remove the address of a process that could not do it itself."""
        with contextlib.suppress(OSError):  # a left-over address harms nobody
            self._state_file.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Stop watching a process that goes on alone."""
        self._process.returncode = 0  # Popen would warn that it still runs, and that is meant so

    def death(self) -> EngineError:
        """What became of the process, as an error for the person."""
        if self._ended_by_us:
            return EngineError("The engine was ended.", "It starts again with the next job.", self._report())
        code = self._process.poll()
        if code is None:
            return EngineError("The connection to the engine was lost.",
                               "What it does goes on; open the run again to follow it.", self._report())
        hint = _OUT_OF_MEMORY_HINT if code == -9 else _CRASH_HINT
        return EngineError(f"The engine stopped unexpectedly ({exit_words(code)}).", hint, self._report())

    def _report(self) -> str:
        code = self._process.poll()
        state = "running" if code is None else exit_words(code)
        return f"engine process {self.pid}: {state}\nlog {self.log_path}, its end:\n{tail(self.log_path)}"


def exit_words(code: int) -> str:
    """An exit status as a person may read it: a signal's name, or the code."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {-code}, {signal.Signals(-code).name}"
        return f"signal {-code}"
    return f"exit code {code}" if code < 0x80000000 else f"exit code 0x{code:08X}"


def tail(path: Path, size: int = _TAIL_BYTES) -> str:
    """The last whole lines of a log; what is wrong where it can not be read."""
    try:
        with open(path, "rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"(the log can not be read: {error})"
    return text.partition("\n")[2] if start else text


def kill_tree(pid: int) -> None:
    """Kill a process and its descendants; done when they are already gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


def _environment() -> dict[str, str]:
    """Our own environment, with `core` importable from any working folder."""
    environment = dict(os.environ)
    root = Path(core.__file__).resolve().parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else str(root)
    set_wait_policy(environment)
    environment["PYTHONSAFEPATH"] = "1"  # nothing is imported from the folder in which the person happens to be
    environment["PYTHONIOENCODING"] = "utf-8:backslashreplace"
    return environment


def _remove_old_logs(folder: Path) -> None:
    """Keep the newest logs. Two engines start at the same time: what the other removes is gone, no more."""
    if not folder.is_dir():
        return
    # the name holds the time of the start
    logs = sorted(folder.glob("engine-*.log"), key=lambda path: path.stem.split("-", 2)[-1])
    for old in logs[:-_KEPT_LOGS]:
        with contextlib.suppress(OSError):  # in use (Windows) or gone
            old.unlink()
