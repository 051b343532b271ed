"""What the engine keeps between the jobs of the Data page, and when it is to be made anew."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from core.config import RunConfig
from core.models.library import resolve
from core.models.load import load_tokenizer

Warm = dict[str, Any]


def warm_tokenizer(model: str, warm: Warm) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, loaded again only where its files have changed."""
    path = resolve(model)
    key = _signature(path)
    if warm.get("data.tokenizer", (None,))[0] != key:
        warm["data.tokenizer"] = (key, load_tokenizer(path))
    return warm["data.tokenizer"][1]


def data_key(config: RunConfig) -> tuple[Any, ...]:
    """Changes when a scan would give something else; first what tells of the files."""
    data = config.data
    return signatures(data.train), _signature(resolve(config.model.path)), data.max_length, data.train_on


def signatures(files: Sequence[str]) -> tuple[Any, ...]:
    """Changes when one of the files does."""
    return tuple(_file_signature(Path(name)) for name in files)


def _signature(folder: Path) -> tuple[Any, ...]:
    """Changes when the tokenizer of a model folder does."""
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
    return tuple(_file_signature(folder / name) for name in names)


def _file_signature(file: Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except OSError:
        return str(file), -1, -1
    return str(file), status.st_size, status.st_mtime_ns
