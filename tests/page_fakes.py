"""An engine by script, and run folders by hand, for the tests of the pages."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from core import events, files
from core.config import AdapterConfig, DataConfig, FullConfig, LoraConfig, ModelConfig, RunConfig, TrainingConfig
from core.control import Control
from core.engine.protocol import Ready
from core.jobs import Job
from core.runs.folder import RunFolder

Script = Callable[[Job, Control], Iterator[events.Event]]


class FakeClient:
    """Runs a script in place of an engine; `gate` holds it where the script waits for it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.jobs: list[Job] = []
        self.gate = threading.Event()
        self.state = "idle"
        self.hardware = Ready()

    def start(self) -> None: ...

    def run(self, job: Job, control: Control) -> Iterator[events.Event]:
        self.jobs.append(job)
        yield from self.script(job, control)

    def kill(self) -> None: ...

    def close(self, keep_running: bool = True) -> None: ...


def step_done(step: int, loss: float = 1.0, **values: float) -> events.StepDone:
    base = {"epoch": step / 100, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 100, "supervised_tokens": 50,
            "seconds": 0.5, "rss_bytes": 2_000_000_000, "device_bytes": 0}
    return events.StepDone(step=step, loss=loss, **{**base, **values})  # type: ignore[arg-type]


def planned(total: int = 100, first_step: int = 0) -> events.Planned:
    return events.Planned(total, 800, 40, 4_900_000, 134_500_000, 19_600_000, "cpu", "bf16", True, first_step)


def make_run(root: Path, name: str, log: list[events.Event] | None = None, *, rank: int = 8, rate: float = 2e-4,
             model: str = "/models/SmolLM2", data: str = "/data/rows.jsonl", trained: bool = True,
             adapter: AdapterConfig | None = None) -> RunFolder:
    """A run folder with a config, a log, an adapter (after full fine-tuning a model) and one checkpoint."""
    run = RunFolder(root / name)
    adapter = adapter or LoraConfig(rank=rank)
    run.write_config(RunConfig(model=ModelConfig(path=model), data=DataConfig(train=(data,)), adapter=adapter,
                               training=TrainingConfig(learning_rate=rate)))
    if log is None:
        log = [events.Started("Train", run.path, 1000.0, 1), planned(), *(step_done(n, 2 / n) for n in range(1, 11)),
               events.Evaluated(10, 0.5, 10, 0.1, True), events.Finished("finished", run.adapter)]
    files.write_text(run.events_path, "".join(events.to_json(event) + "\n" for event in log))
    if trained and isinstance(adapter, FullConfig):
        files.write_text(run.model / "config.json", "{}")
        files.write_text(run.checkpoint(10) / "manifest.json", "{}")
    elif trained:
        folder = run.checkpoint(10)
        for place in (run.adapter, folder):
            files.write_text(place / "adapter_config.json", "{}")
        files.write_bytes(run.adapter / "adapter_model.safetensors", b"x" * 1000)
        files.write_text(folder / "manifest.json", "{}")
        files.write_bytes(folder / "adapter_model.safetensors", b"x" * 1000)
    return run
