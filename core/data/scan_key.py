"""When what the engine keeps between the jobs of the Data page is to be made anew."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config import RunConfig
from core.models.kept_tokenizer import FileSignature, file_signature, tokenizer_signature
from core.models.library import resolve

Warm = dict[str, Any]


def data_key(config: RunConfig) -> tuple[Any, ...]:
    """Changes when a scan would give something else; first what tells of the files."""
    data = config.data
    return signatures(data.train), tokenizer_signature(resolve(config.model.path)), data.max_length, data.train_on


def signatures(files: Sequence[str]) -> tuple[FileSignature, ...]:
    """Changes when one of the files does."""
    return tuple(file_signature(Path(name)) for name in files)
