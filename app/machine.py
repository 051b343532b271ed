"""What this machine has, in words."""

import os

import psutil

from core.words import memory, plural


def memory_bytes() -> int:
    """All memory of the machine."""
    return psutil.virtual_memory().total


def words(accelerator: str = "") -> str:
    """`CPU, 2 cores · 25 GB`, or the accelerator's own words where there is one."""
    if accelerator:
        return accelerator
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return f"CPU, {plural(cores, 'core')} · {memory(memory_bytes())}"
