"""Tiny base models and a run on one of them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import build_tiny

sys.path.insert(0, str(Path(__file__).resolve().parent))

from export_help import Made, build_run


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny sharded base models by family, built once. Read only."""
    root = tmp_path_factory.mktemp("bases")

    def get(family: str) -> Path:
        folder = root / family
        return folder if folder.exists() else build_tiny(family, folder, shard_size="150KB")

    return get


@pytest.fixture
def made(tmp_path: Path, bases: Callable[[str], Path]) -> Made:
    """A run on the tied, sharded tiny Llama."""
    return build_run(tmp_path / "run", bases("llama"))
