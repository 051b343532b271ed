"""A measurement in a process of its own, so that its peak memory and its settings are its own.

    answer = run_alone("ours:train_once", {...}, home)

calls `train_once(**request)` of `bench/speed/ours.py` in a new process and gives what it returns. This side imports
no torch: where a process is started, the system counts the memory of its parent as the first memory of the child.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
_KEPT_LINES = 25  # of what a failed process said


class MeasurementFailed(Exception):
    """The process ended without an answer; the message holds the end of what it said."""


def run_alone(task: str, request: Mapping[str, Any], home: Path, settings: Mapping[str, str] | None = None,
              ) -> dict[str, Any]:
    """What `task` ("module:function" of bench/speed) answers to `request`; both are plain values.

    Args:
        task: which function does it.
        request: its arguments by name.
        home: the program's data folder in that process, so that nothing kept from earlier shortens the work.
        settings: more environment variables.

    Raises:
        MeasurementFailed: it raised, or was killed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LORA_WORKBENCH_HOME": str(home), "HF_HUB_OFFLINE": "1",
                   "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    environment |= settings or {}
    done = subprocess.run([sys.executable, "-m", "bench.speed.alone", task], cwd=ROOT, env=environment,
                          input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-_KEPT_LINES:])
        raise MeasurementFailed(f"{task} ended with {done.returncode}:\n{said}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """The measuring process: the request comes on standard input, the answer is the last line of its output."""
    module, _, function = sys.argv[1].partition(":")
    answer = getattr(importlib.import_module(f"bench.speed.{module}"), function)(**json.load(sys.stdin))
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
