"""Tokenised rows are kept on the disk: a run with the same data, tokenizer and settings does not make them again.

The name of an entry is a digest of everything that its rows depend on: the content of the files, the
tokenizer with its chat template, the settings, and the code that makes rows.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from core.code_digest import code_digest
from core.config import DataConfig
from core.control import Control
from core.data.row_store import is_whole
from core.data.source import check_file
from core.errors import DataError
from core.files import TEMPORARY_SUFFIX, awaited_lock, free_bytes, publish_folder, scratch_folder, write_text
from core.paths import cache_root

CACHE_BYTES = 8 * 2**30  # of all entries together; the newest one stays, however large it is
_SUMMARY = "summary.json"
_BLOCK_BYTES = 2**22
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Summary:
    """What was counted while rows were made."""

    rows: int
    dropped: int  # rows without a single token to learn
    cut: int  # rows cut at the limit
    largest_id: int


def rows_root() -> Path:
    """The folder of all entries."""
    return cache_root() / "rows"


def entry_path(data: DataConfig, tokenizer: PreTrainedTokenizerBase, control: Control) -> Path:
    """Where the rows of these files with this tokenizer and these settings are kept.

    Raises:
        Cancelled: a stop was asked for.
        DataError: a file can not be read.
    """
    known = {"files": [(Path(name).suffix.lower(), _file_digest(Path(name), control)) for name in data.train],
             "train_on": data.train_on, "max_length": data.max_length,
             "tokenizer": _tokenizer_digest(tokenizer),
             "code": code_digest(("data",), ("tokenizers", "transformers", "jinja2"))}
    return rows_root() / hashlib.blake2b(json.dumps(known).encode(), digest_size=16).hexdigest()


def _file_digest(file: Path, control: Control) -> str:
    check_file(file)
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(file, "rb", buffering=0) as source:
            while block := source.read(_BLOCK_BYTES):
                control.check()
                digest.update(block)
    except OSError as error:
        raise DataError(f"{file} can not be read: {error.strerror or error}.", "Check the disk.") from error
    return digest.hexdigest()


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    known = (tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template,  # type: ignore[attr-defined] -- a fast one
             tokenizer.special_tokens_map, tokenizer.bos_token_id)
    return hashlib.blake2b(repr(known).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def entry_lock(path: Path, control: Control) -> AbstractContextManager[None]:
    """Held while the entry is looked for and made: of two runs that need the same one, one makes it.

    Raises:
        Cancelled: a stop was asked for while another run made it.
    """
    return awaited_lock(cache_root() / "locks" / f"rows-{path.name}.lock", control.check)


def find_entry(path: Path) -> Summary | None:
    """The summary of a whole entry, which now counts as used; None if there is none."""
    try:
        values: Any = json.loads((path / _SUMMARY).read_text("utf-8"))
        summary = Summary(**values)
    except (OSError, ValueError, TypeError):  # absent, or not of this version
        return None
    if not is_whole(path, summary.rows):
        return None
    with suppress(OSError):  # a cache that can only be read can be used all the same
        os.utime(path)
    return summary


@contextmanager
def new_entry(path: Path) -> Iterator[Path]:
    """Give a folder to write the rows and the summary in; it becomes the entry `path` if all goes well.

    Raises:
        DataError: the disk is full, or can not be written.
    """
    try:
        with scratch_folder(rows_root()) as work:
            folder = work / "rows"
            folder.mkdir()
            yield folder
            if path.exists():  # not whole, else it had been found
                _remove(path)
            publish_folder(folder, path)
    except OSError as error:
        raise DataError(f"The tokenised rows can not be kept in {rows_root()}: {error.strerror or error}.",
                        f"There are {free_bytes(rows_root()) / 2**30:.1f} GB free; the rows need about as much as "
                        "the data.") from error
    _bound(keep=path)


def write_summary(folder: Path, summary: Summary) -> None:
    """Write it beside the rows."""
    write_text(folder / _SUMMARY, json.dumps(asdict(summary)))


def _bound(keep: Path) -> None:
    """Remove what a killed run left, and the entries that were not used for the longest time until the others fit."""
    total = 0
    for entry in sorted(rows_root().iterdir(), key=lambda entry: (entry != keep, -entry.stat().st_mtime)):
        if entry.name.endswith(TEMPORARY_SUFFIX):
            if time.time() - max(item.stat().st_mtime for item in (entry, *entry.rglob("*"))) > _ABANDONED_SECONDS:
                shutil.rmtree(entry)
            continue
        total += sum(file.stat().st_size for file in entry.iterdir())
        if total > CACHE_BYTES and entry != keep:
            _remove(entry)


def _remove(entry: Path) -> None:
    gone = entry.with_name(f".{entry.name}{TEMPORARY_SUFFIX}")
    with suppress(PermissionError):  # Windows does not let go of files that a run reads
        entry.replace(gone)
        shutil.rmtree(gone)
