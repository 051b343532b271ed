import json
import shutil
from pathlib import Path

import pytest

from core.errors import ModelError
from core.models import inspect
from core.models.inspect import read_card


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were described anew."""
    seen: list[Path] = []
    original = inspect._described

    def noted(path: Path, headers: list) -> object:
        seen.append(path)
        return original(path, headers)

    monkeypatch.setattr(inspect, "_described", noted)
    return seen


def test_a_model_that_did_not_change_is_described_once(folder: Path, described: list[Path]) -> None:
    card = read_card(folder)
    assert read_card(folder) == card
    assert described == [folder]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_changed_file_makes_a_new_card(name: str, folder: Path, described: list[Path]) -> None:
    read_card(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content)  # the same bytes, but who knows that without reading them
    read_card(folder)
    assert described == [folder, folder]


def test_another_folder_has_a_card_of_its_own(folder: Path, described: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    assert (read_card(folder).path, read_card(other).path) == (folder, other)
    assert read_card(folder).path == folder and described == [folder, other]


@pytest.mark.parametrize("damaged", ["", "[]", '{"state": 1}'])
def test_a_damaged_card_is_written_anew(damaged: str, folder: Path, described: list[Path], home: Path) -> None:
    card = read_card(folder)
    (kept,) = (home / "cache" / "cards").iterdir()
    kept.write_text(damaged or json.dumps({**json.loads(kept.read_text()), "card": {"event": "Note"}}))
    assert read_card(folder) == card == read_card(folder)
    assert described == [folder, folder]


def test_a_kept_card_does_not_stand_for_the_checks(folder: Path) -> None:
    read_card(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        read_card(folder)
