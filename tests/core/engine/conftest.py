import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.engine.client import EngineClient, Patience

sys.path.insert(0, str(Path(__file__).parent))  # engine_help, for the tests in this folder


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
