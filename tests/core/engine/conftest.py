from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.config import ModelConfig, RunConfig
from core.engine.client import EngineClient, Patience
from core.jobs import Train


@pytest.fixture
def make_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., EngineClient]]:
    """Clients whose child runs the jobs of fake_jobs; all are ended after the test."""
    monkeypatch.setenv("LORA_WORKBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    made: list[EngineClient] = []

    def make(role: str = "work", **options: object) -> EngineClient:
        options = {"patience": Patience(silence=1.5, after_stop=1.0), "linger_seconds": 20.0,
                   "runner": "fake_jobs:FakeRunner", **options}
        made.append(EngineClient(role, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for client in made:
        client.kill()


def fake_run(folder: Path, **options: object) -> Train:
    """A request for the fake training job."""
    text = ",".join(f"{key}={value}" for key, value in options.items())
    return Train(RunConfig(model=ModelConfig(path=text)), folder)


def process_lives(pid: int) -> bool:
    """True while a process runs (a zombie does not)."""
    import psutil
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


