"""The tokenizer that was used last, kept in memory: to read one takes a third of a second, in which a person waits."""

from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from core.lora.tokenizer_files import TOKENIZER_FILES
from core.models.load import load_tokenizer

FileSignature = tuple[str, int, int]
_FILES = (*TOKENIZER_FILES, "chat_template.json", "config.json")


def kept_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, read again only where its files have changed.

    All get the same one: who adds tokens to it takes `load_tokenizer`.

    Raises:
        ModelError: missing or damaged tokenizer files.
    """
    return _read(path, tokenizer_signature(path))


@lru_cache(maxsize=1)
def _read(path: Path, signature: tuple[FileSignature, ...]) -> PreTrainedTokenizerBase:
    return load_tokenizer(path)


def tokenizer_signature(folder: Path) -> tuple[FileSignature, ...]:
    """Changes when the tokenizer of a model folder does."""
    templates = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return tuple(file_signature(file) for file in (*(folder / name for name in _FILES), *templates))


def file_signature(file: Path) -> FileSignature:
    """Path, bytes and time of the last change; -1 for a file that is not there."""
    try:
        status = file.stat()
    except OSError:
        return str(file), -1, -1
    return str(file), status.st_size, status.st_mtime_ns
