"""What the figures were measured on, and how fast a matrix product is there."""

import platform
import time
from pathlib import Path
from typing import Any

import torch

from core.lora.columns import product

_SIZE = 1536
_TRIES = 4


def matrix_speed() -> float:
    """GFLOP/s of a large fp32 matrix product, now, with the threads that training uses; the best of four, each as a
    whole and in blocks of columns.
    """
    left, right = torch.randn(_SIZE, _SIZE), torch.randn(_SIZE, _SIZE)
    best = 0.0
    for compute in (torch.mm, product) * _TRIES:
        started = time.perf_counter()
        compute(left, right)
        best = max(best, 2 * _SIZE**3 / (time.perf_counter() - started) / 1e9)
    return best


class StepClock:
    """Seconds, and processor seconds of all threads, from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """The first step begins."""
        self._before = time.perf_counter(), time.process_time()

    def lap(self) -> dict[str, float]:
        """A step is done."""
        (seconds, busy), now = self._before, (time.perf_counter(), time.process_time())
        self._before = now
        return {"seconds": now[0] - seconds, "cpu_seconds": now[1] - busy}


def describe() -> dict[str, Any]:
    """Device, threads and versions."""
    import peft
    import transformers

    return {"device": f"cpu, {_processor()}", "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__,
            "transformers": transformers.__version__, "peft": peft.__version__, "python": platform.python_version(),
            "matrix_gflops": matrix_speed()}


def _processor() -> str:
    """The processor's name, where the system tells it."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
