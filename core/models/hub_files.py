"""Which files of a hub repository are fetched, and whether they arrived as they were."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.control import Control
from core.errors import ModelError
from core.models.safety import PICKLE_SUFFIXES, WEIGHTS, WEIGHTS_INDEX, is_plain_name

_COMPANIONS = frozenset({
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tekken.json", "chat_template.json",
})
_COMPANION_SUFFIXES = frozenset({".model", ".jinja"})
_CHUNK_BYTES = 8 * 1024**2


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository with the digest that the hub gives for it."""

    name: str
    size: int  # bytes
    sha256: str  # of the content; "" where the hub gives none
    git_sha1: str  # of "blob SIZE\\0" + content, as git counts it; "" where the hub gives none


def choose_files(repo_id: str, siblings: Sequence[Any], shards: Collection[str] = ()) -> list[RemoteFile]:
    """Weights in safetensors, config and tokenizer; small files first, so that trouble shows early.

    Args:
        repo_id: for the error's sentence.
        siblings: the hub's list, each with rfilename, size, blob_id and lfs.
        shards: names that the index gives the parts of the model, once it has been fetched; any name is possible.

    Raises:
        ModelError: no safetensors in it, a shard that it lacks, or a file without a size.
    """
    names = {sibling.rfilename for sibling in siblings}
    # names with a path part are other versions (onnx/, original/) or mischief
    wanted = [sibling for sibling in siblings
              if is_plain_name(sibling.rfilename) and _is_wanted(sibling.rfilename, WEIGHTS in names, shards)]
    if not {WEIGHTS, WEIGHTS_INDEX} & names:
        if any(Path(name).suffix.lower() in PICKLE_SUFFIXES for name in names):
            raise ModelError(f"{repo_id} has its weights only as pickle files, which can run code; "
                             "they are not fetched.", "Choose a model with safetensors files.")
        raise ModelError(f"{repo_id} has no model.safetensors.", "Choose a language model with safetensors files.")
    if "config.json" not in names:
        raise ModelError(f"{repo_id} has no config.json, so it is not a whole model.",
                         "An adapter needs its base model; choose that one.")
    lacking = sorted(set(shards) - names)
    if lacking:
        raise ModelError(f"{repo_id} has no {lacking[0]}, which its list of parts names.",
                         "It was uploaded incompletely; choose another version of this model.")
    return sorted((_remote(repo_id, sibling) for sibling in wanted), key=lambda file: (file.size, file.name))


def _is_wanted(name: str, has_single_file: bool, shards: Collection[str]) -> bool:
    if name == WEIGHTS or name in _COMPANIONS or Path(name).suffix in _COMPANION_SUFFIXES:
        return True
    return not has_single_file and (name == WEIGHTS_INDEX or name in shards)


def _remote(repo_id: str, sibling: Any) -> RemoteFile:
    if not isinstance(sibling.size, int) or sibling.size < 0:
        raise ModelError(f"The hub does not say how large {sibling.rfilename} of {repo_id} is.", "Try again later.")
    large = sibling.lfs
    digest = "" if large is None else large["sha256"] if isinstance(large, dict) else large.sha256
    return RemoteFile(sibling.rfilename, sibling.size, digest or "", "" if digest else sibling.blob_id or "")


def verify(file: RemoteFile, path: Path, control: Control) -> None:
    """Compare size and digest with the hub's.

    Raises:
        ModelError: the content is not what the hub has.
    """
    size = path.stat().st_size
    if size == file.size and (not file.sha256 or _digest(path, hashlib.sha256(), control) == file.sha256):
        # git's digest is no protection against malice, only against a broken line
        git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        if not file.git_sha1 or _digest(path, git, control) == file.git_sha1:
            return
    raise ModelError(f"{file.name} did not arrive as the hub has it.", "Start it again; the file is fetched anew.")


def _digest(path: Path, digest: Any, control: Control) -> str:
    with open(path, "rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            control.check()
            digest.update(chunk)
    return digest.hexdigest()
