"""A tokenizer is read once, and again where its files have changed."""

import shutil
from pathlib import Path

import pytest

from core.errors import ModelError
from core.models.kept_tokenizer import kept_tokenizer


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_it_is_read_once(model: Path) -> None:
    assert kept_tokenizer(model) is kept_tokenizer(model)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_changed_files_are_read_again(name: str, model: Path) -> None:
    first = kept_tokenizer(model)
    file = model / name
    file.write_text((file.read_text() if file.is_file() else "{}") + "\n")
    assert kept_tokenizer(model) is not first


def test_another_chat_template_is_seen(model: Path) -> None:
    first = kept_tokenizer(model).chat_template
    (model / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}!{% endfor %}")
    assert kept_tokenizer(model).chat_template != first


def test_a_damaged_one_is_refused_each_time(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")
    for _ in range(2):
        with pytest.raises(ModelError):
            kept_tokenizer(model)
