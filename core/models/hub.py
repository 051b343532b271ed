"""Fetch a model from the Hugging Face hub into the library, only when the person asks for it."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, errors, hf_hub_url
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id

from core import files
from core.control import Control
from core.errors import CoreError, ModelError
from core.events import Event, Progress, Result
from core.jobs import DownloadModel
from core.models.card_file import new_card, read_card_file, write_card
from core.models.hub_files import RemoteFile, choose_files, verify
from core.models.safety import WEIGHTS_INDEX, check_files, read_weight_map
from core.paths import cache_root, models_root
from core.runs.folder import safe_name

_TIMEOUT_SECONDS = 10.0  # of one wait for the network; a stop is heeded in between
_ATTEMPTS = 4  # without a single new byte
_TELL_SECONDS = 0.1
_SPARE_BYTES = 64 * 1024**2
_Answer = TypeVar("_Answer")
# The HTTP library's own root of errors; huggingface_hub has changed that library more than once.
_HttpError: type[Exception] = errors.HfHubHTTPError.__mro__[1]


def download_model(job: DownloadModel, control: Control, endpoint: str | None = None) -> Iterator[Event]:
    """Fetch weights (safetensors only), config and tokenizer of a repository into the library.

    What was fetched before a stop or a broken line is kept and gone on with the next time. The model
    gets its name in the library when it is whole and has passed the safety checks. Yields Progress
    in bytes and a Result with `path` and `name`.

    Args:
        job: repository and revision.
        control: a stop is heeded at every chunk.
        endpoint: address of another hub; None takes HF_ENDPOINT or the public one.

    Raises:
        ModelError: not found, gated, offline, without safetensors, or unsafe.
        CoreError: no room on the disk.
        Cancelled: stopped by the person.
    """
    info = _model_info(job, endpoint)
    commit = info.sha or job.revision
    source = f"{info.id}@{commit}"
    target = _known_entry(source)
    if target is None:
        chosen = choose_files(job.repo_id, info.siblings or [])
        target = files.free_path(models_root() / safe_name(info.id.rpartition("/")[2]))
        part = models_root() / f".{safe_name(info.id.replace('/', '--'))}.{commit[:12]}.part"
        with files.exclusive_lock(cache_root() / "locks" / f"{part.name}.lock",
                                  f"{info.id} is being fetched by another program."):
            index = [file for file in chosen if file.name == WEIGHTS_INDEX]
            if index:  # only it knows the names of the shards
                yield from _fetch_all(info.id, commit, index, part, control, endpoint)
                chosen = _with_shards(job.repo_id, info, part)
            yield from _fetch_all(info.id, commit, chosen, part, control, endpoint)
            _admit(info.id, commit, chosen, part, target)
    yield Result({"path": target, "name": target.name})


def _with_shards(repo_id: str, info: ModelInfo, part: Path) -> list[RemoteFile]:
    """The files with the shards that the index in `part` names."""
    try:
        return choose_files(repo_id, info.siblings or [], set(read_weight_map(part).values()))
    except ModelError:
        shutil.rmtree(part, ignore_errors=True)  # it would be refused the next time as well
        raise


def _model_info(job: DownloadModel, endpoint: str | None) -> ModelInfo:
    try:
        validate_repo_id(job.repo_id)
    except errors.HFValidationError:
        raise ModelError(f"{job.repo_id!r} is no name of a model on the hub.",
                         "It looks like owner/name, for example HuggingFaceTB/SmolLM2-135M-Instruct.") from None
    api = HfApi(endpoint=endpoint)
    return _ask(job, lambda: api.model_info(job.repo_id, revision=job.revision, files_metadata=True,
                                            timeout=_TIMEOUT_SECONDS))


def _ask(job: DownloadModel, question: Callable[[], _Answer]) -> _Answer:
    with _plain_errors(job.repo_id, job.revision):
        return question()


@contextmanager
def _plain_errors(repo_id: str, revision: str) -> Iterator[None]:
    """The hub's errors as sentences. The order is from the narrow to the wide class."""
    try:
        yield
    except errors.GatedRepoError:
        raise ModelError(f"The owners of {repo_id} give it only to people who accepted their terms.",
                         "Accept the terms on its page, then log in here with `hf auth login`.") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(f"The hub has no model {repo_id}, or it is private.",
                         "Check the spelling; for a private model log in with `hf auth login`.") from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"The model {repo_id} has no revision {revision!r}.", "Most models have `main`.") from None
    except errors.OfflineModeIsEnabled:
        raise ModelError("The hub is switched off on this machine (HF_HUB_OFFLINE).",
                         "Unset that variable and start the program again.") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise ModelError(f"The hub refused to give {repo_id} (HTTP {status}).", "Try again later.") from error
    except _HttpError as error:
        raise ModelError(f"The hub can not be reached ({type(error).__name__}).",
                         "Check the connection, then start it again; it goes on where it stopped.") from error


def _fetch_all(repo_id: str, commit: str, chosen: list[RemoteFile], part: Path, control: Control,
               endpoint: str | None) -> Iterator[Event]:
    """Fill `part` with every chosen file; each is verified against the hub's digest."""
    total = sum(file.size for file in chosen)
    here = {file.name: _bytes_of(part / file.name) for file in chosen}
    missing = total - sum(here.values())
    free = files.free_bytes(part)
    if free < missing + _SPARE_BYTES:
        raise CoreError(f"Fetching {repo_id} needs {missing + _SPARE_BYTES:,} bytes on the disk of {part.parent}, "
                        f"{free:,} are free.", f"Free {missing + _SPARE_BYTES - free:,} bytes, then start it again.")
    part.mkdir(parents=True, exist_ok=True)
    told = 0.0
    for file in chosen:
        for size in _fetch(repo_id, commit, file, part / file.name, control, endpoint):
            here[file.name] = size
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                yield Progress(f"Fetching {file.name}", sum(here.values()), total, "bytes")
        yield Progress(f"Fetching {file.name}", sum(here.values()), total, "bytes")


def _fetch(repo_id: str, commit: str, file: RemoteFile, path: Path, control: Control,
           endpoint: str | None) -> Iterator[int]:
    """Bytes of `path` so far, again and again until it is whole and verified."""
    url = hf_hub_url(repo_id, file.name, revision=commit, endpoint=endpoint)
    attempts = 0
    while (size := _bytes_of(path)) < file.size or not path.exists():
        control.check()
        try:
            yield from _stream(url, path, size, file, control)
        except errors.HfHubHTTPError:
            with _plain_errors(repo_id, commit):
                raise
        except _HttpError:  # the line broke; go on from where it did
            attempts = 0 if _bytes_of(path) > size else attempts + 1
            if attempts >= _ATTEMPTS:
                with _plain_errors(repo_id, commit):
                    raise
            continue
        if _bytes_of(path) < file.size:
            attempts += 1
            if attempts >= _ATTEMPTS:
                raise ModelError(f"The hub ended {file.name} of {repo_id} too early.", "Start it again later.")
    control.check()
    try:
        verify(file, path, control)
    except ModelError:
        path.unlink()  # a wrong file must not be gone on with
        raise


def _stream(url: str, path: Path, start: int, file: RemoteFile, control: Control) -> Iterator[int]:
    headers = {**build_hf_headers(library_name="lora-workbench"), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request: AbstractContextManager[Any] = get_session().stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_SECONDS)
    with request as response:
        hf_raise_for_status(response)
        if start and response.status_code != 206:
            path.unlink(missing_ok=True)  # the server starts from the beginning
            start = 0
        with files.partial_file(path) as target:
            for chunk in response.iter_bytes():
                control.check()
                start += len(chunk)
                if start > file.size:
                    raise ModelError(f"The hub sent more bytes of {file.name} than it had announced.")
                target.write(chunk)
                yield start


def _admit(repo_id: str, commit: str, chosen: list[RemoteFile], part: Path, target: Path) -> None:
    """Check what was fetched and give it its name in the library."""
    names = {file.name for file in chosen}
    for stray in part.iterdir():
        if stray.name not in names:
            stray.unlink()
    try:
        check_files(part)
    except ModelError:
        shutil.rmtree(part, ignore_errors=True)  # it would be refused the next time as well
        raise
    write_card(part, new_card(f"Fetched from the Hugging Face hub: {repo_id}, revision {commit[:12]}.",
                              f"{repo_id}@{commit}", sum(file.size for file in chosen), ""))
    files.publish_folder(part, target)


def _known_entry(source: str) -> Path | None:
    root = models_root()
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        card = None if folder.name.startswith(".") else read_card_file(folder)
        if card is not None and card.source_name == source:
            return folder
    return None


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
