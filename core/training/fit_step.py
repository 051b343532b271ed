"""One real step on the longest rows, in a process of its own, to see how much memory it needs.

`python -m core.training.fit_step` reads a ProbeMemory from its standard input and writes events as lines of JSON, the
last one a MemoryMeasured or a Failed. core.training.fit_probe starts it.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from core import events, jobs
from core.config import RunConfig
from core.control import Control
from core.data.row_store import row_lengths
from core.errors import CoreError
from core.events import Event, Failed, MemoryMeasured, Progress
from core.lora.method import train_mode
from core.models.device import gpu_peak_bytes
from core.peak_memory import peak_bytes
from core.training.contention import watched_contention
from core.training.optim import make_optimizer
from core.training.schedule import total_steps
from core.training.segments import segmented_attention
from core.training.setup import Setup, prepare
from core.training.step import one_step

# the optimizer has its moments from the first step on, so the second is the one that needs most
STEPS = 2
STAGE = "Measuring a step"


def fit_step(config: RunConfig, control: Control) -> Iterator[Event]:
    """Load, train STEPS steps on the longest rows, and tell the peak -> MemoryMeasured. Nothing is written.

    Raises:
        CoreError: as a run with this config would.
    """
    # gradients that are added up are there from the second batch on; more batches need no more memory
    once = min(config.training.gradient_accumulation, 2)
    config = config.model_copy(update={"training": config.training.model_copy(update={"gradient_accumulation": once})})
    torch.manual_seed(config.training.seed)
    setup = yield from prepare(config, control)
    total = total_steps(setup.config.training, len(setup.train))
    setup = _with_longest_rows(setup)
    optimizer = make_optimizer(setup.adaptation.optimizer_groups(setup.model), setup.config, setup.device)
    train_mode(setup.model)
    yield from setup.adaptation.begin(setup.model, 0, total)
    packed = setup.config.training.packing == "on"
    started = time.perf_counter()
    with segmented_attention(setup.model) if packed else contextlib.nullcontext(), watched_contention():
        for step in range(STEPS):
            yield Progress(STAGE, step, STEPS)
            if one_step(setup, optimizer, step, total, control) is None:
                raise CoreError("The measurement was stopped.")
    rows = setup.train[:setup.config.training.batch_size]
    largest = max(batch.input_ids.numel() for batch in setup.batches(rows))
    yield MemoryMeasured(_peak(setup.device), str(setup.device), largest, time.perf_counter() - started)


def _with_longest_rows(setup: Setup) -> Setup:
    """The setup of a run whose every step has the longest rows."""
    training = setup.config.training
    longest = np.argsort(-row_lengths(setup.train), kind="stable")
    rows = training.batch_size * training.gradient_accumulation
    return replace(setup, train=tuple(setup.train[int(place)] for place in longest[:rows]))


def _peak(device: torch.device) -> int:
    """Of the GPU where it computes there, else of the process."""
    return gpu_peak_bytes(device) if device.type == "cuda" else peak_bytes()


def main() -> int:
    """Do what the standard input says; 1 where that failed."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    try:
        job = jobs.from_plain(json.load(sys.stdin))
        assert isinstance(job, jobs.ProbeMemory)
        for event in fit_step(job.config, Control()):
            print(events.to_json(event), file=answers, flush=True)
    except Exception as error:  # noqa: BLE001 -- told to the process that asked
        print(events.to_json(Failed.of(error)), file=answers, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
