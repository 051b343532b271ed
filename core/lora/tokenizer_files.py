"""The tokenizer that an adapter brings along where it taught the model new tokens."""

import shutil
from pathlib import Path

from core import files

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja")
_MARKS = ("tokenizer.json", "tokenizer_config.json")


def has_tokenizer(folder: Path) -> bool:
    """True where a tokenizer lies in the adapter's folder."""
    return any((folder / name).is_file() for name in _MARKS)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the adapter's tokenizer, if it has one, over what is in `folder`."""
    if not has_tokenizer(source):
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            with files.atomic_path(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
