"""Seconds from Start to the first forward pass of a run, with a warm engine: the median of five runs.

    python bench/start.py [--times 5] [--model starter] [--data FILE] [--rows 1000] [--json]

The engine is the real one, in its own process, as the window starts it. The clock starts when the job is given to
it and ends when the first row enters the model after everything is prepared (short probes before do not count).
Every run has a file of its own, so that rows kept from an earlier one do not shorten it. The very first run is told
apart: it reads the model's files into the system's cache and proves the computing path, where that is not known yet.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core import jobs
from core.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from core.control import Control
from core.engine.client import EngineClient
from core.engine.job_table import JobRunner
from core.events import Event, Failed, Note, Planned, Progress
from core.paths import SAMPLE

LIMIT_SECONDS = 1.5
_MARK = "first forward at "


@dataclass(frozen=True)
class StartTimes:
    """Seconds from Start to the first forward pass: of the `first` run, of the others, and the last one's stages."""

    first: float
    seconds: tuple[float, ...]
    stages: dict[str, float]

    @property
    def median(self) -> float:
        """The figure that is compared with the limit."""
        return statistics.median(self.seconds)


class MarkingRunner(JobRunner):
    """The engine's own runner, which also tells when the first row enters the model."""

    def __call__(self, job: jobs.Job, control: Control) -> Iterator[Event]:
        """The events of a job, and a Note with the time of the first forward pass."""
        from torch.nn.modules.module import register_module_forward_pre_hook

        entered: list[float] = []
        hook = None
        for event in super().__call__(job, control):
            yield event
            if isinstance(event, Planned):
                hook = register_module_forward_pre_hook(lambda *_: entered.append(time.time()) if not entered else None)
            elif hook is not None and entered:
                yield Note(f"{_MARK}{entered[0]}")
                hook.remove()
                hook = None


def measure(model: str, data: Path, rows: int, times: int) -> StartTimes:
    """Start `times` runs of two steps in one warm engine, each on a file that no run before had."""
    seconds = []
    stages: dict[str, float] = {}
    client = EngineClient("train", runner="bench.start:MarkingRunner")
    client.start()
    while client.state == "starting":
        time.sleep(0.05)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(times + 1):
                file = Path(folder) / f"rows-{number}.jsonl"
                write_rows(data, file, rows)
                stages = start_once(client, model, file, Path(folder) / f"run-{number}")
                seconds.append(stages["first forward"])
    finally:
        client.close(keep_running=False)
    return StartTimes(seconds[0], tuple(seconds[1:]), stages)


def start_once(client: EngineClient, model: str, file: Path, run_dir: Path) -> dict[str, float]:
    """One run; seconds from its start to the first event of every stage and to the first forward pass."""
    config = RunConfig(model=ModelConfig(path=model), data=DataConfig(train=(str(file),), validation_fraction=0),
                       training=TrainingConfig(max_steps=1))
    found: dict[str, float] = {}
    began = time.time()
    for event in client.run(jobs.Train(config, run_dir), Control()):
        if isinstance(event, Failed):
            raise SystemExit(f"{event.message} {event.details}")
        name = event.stage if isinstance(event, Progress) else type(event).__name__
        found.setdefault(name, time.time() - began)
        if isinstance(event, Note) and event.message.startswith(_MARK):
            found["first forward"] = float(event.message.removeprefix(_MARK)) - began
    return found


def write_rows(source: Path, target: Path, rows: int) -> None:
    """`rows` rows of a JSONL file or JSON list, begun again where it ends, in an order that no run before had."""
    text = source.read_text(encoding="utf-8")
    items: list[Any] = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    chosen = [items[index % len(items)] for index in range(rows)]
    random.SystemRandom().shuffle(chosen)
    target.write_text("".join(json.dumps(item) + "\n" for item in chosen), encoding="utf-8")


def main() -> int:
    """Measure and print; exit code 1 where the median is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--data", type=Path, default=SAMPLE / "train.jsonl")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.model, options.data, options.rows, options.times)
    if options.json:
        print(json.dumps({**asdict(found), "median": found.median, "limit": LIMIT_SECONDS}))
    else:
        print(f"Start to the first forward pass: median {found.median:.2f} s "
              f"({', '.join(f'{value:.2f}' for value in found.seconds)}; limit {LIMIT_SECONDS} s); "
              f"the very first {found.first:.2f} s")
        print("the last run: " + ", ".join(f"{name} {value:.2f}" for name, value in found.stages.items()))
    return int(found.median > LIMIT_SECONDS)


if __name__ == "__main__":
    raise SystemExit(main())
