"""A GGUF file becomes a model of the library: bf16 safetensors, tokenizer, template, generation config."""

import contextlib
import glob
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

import psutil

import core
from core import files
from core.control import Control
from core.errors import ModelError
from core.events import Event, Progress, Result
from core.jobs import ImportGguf
from core.models.card_file import new_card, read_card_file, write_card
from core.models.gguf_header import GgufHeader, read_gguf_header
from core.models.safety import check_files
from core.paths import cache_root, models_root
from core.runs.folder import safe_name

_CHUNK_BYTES = 8 * 1024**2
_SPARE_BYTES = 64 * 1024**2  # tokenizer, config, and some room for the disk itself


def import_gguf(job: ImportGguf, control: Control) -> Iterator[Event]:
    """Dequantise a GGUF file into the library; the same file again gives the same entry.

    Yields Progress and a Result with `path` and `name`.

    Raises:
        ModelError: not a usable GGUF file, or of a kind that can not be converted.
        CoreError: no room on the disk.
        Cancelled: nothing half written is left.
    """
    header = read_gguf_header(job.file)
    digest = yield from hash_file(job.file, control)
    target = _known_entry(digest, header.file_bytes)
    if target is None:
        target = files.free_path(models_root() / safe_name(job.file.stem))
        origin = f"Dequantised to bf16 from the GGUF file {job.file.name} ({' and '.join(header.type_names[:2])})."
        yield from convert_into(header, target, digest, origin, control)
    yield Result({"path": target, "name": target.name})


def convert_into(header: GgufHeader, target: Path, digest: str, origin: str, control: Control) -> Iterator[Event]:
    """Convert the file of `header` into the new folder `target`, which appears whole or not at all.

    Raises:
        ModelError, CoreError, Cancelled: see `import_gguf`.
    """
    card = new_card(origin, header.path.name, header.file_bytes, digest)
    lock = cache_root() / "locks" / f"{target.name}.lock"
    with files.exclusive_lock(lock, f"{target.name} is being imported by another program."):
        for remains in target.parent.glob(f".{glob.escape(target.name)}.*{files.TEMPORARY_SUFFIX}"):
            shutil.rmtree(remains, ignore_errors=True)  # of an import that was killed
        _require_room(header, target)
        control.check()
        with files.atomic_folder(target) as folder:
            yield from _run_child(header, folder, control)
            check_files(folder)
            write_card(folder, card)
            control.check()


def hash_file(path: Path, control: Control) -> Generator[Event, None, str]:
    """SHA-256 of a file in hexadecimal, with Progress in bytes."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            control.check()
            digest.update(chunk)
            done += len(chunk)
            yield Progress("Reading the file", done, total, "bytes")
    return digest.hexdigest()


def _known_entry(digest: str, size: int) -> Path | None:
    root = models_root()
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        card = read_card_file(folder)
        if card and card.source_sha256 == digest and card.source_bytes == size:
            return folder
    return None


def _require_room(header: GgufHeader, target: Path) -> None:
    needed = 2 * header.parameters + _SPARE_BYTES
    free = files.free_bytes(target)
    if free < needed:
        raise ModelError(
            f"Importing {header.path.name} needs {needed:,} bytes on the disk of {target.parent}, {free:,} are free.",
            f"Free {needed - free:,} bytes, then import it again.")
    memory = psutil.virtual_memory().available
    if memory < 2 * header.parameters:
        raise ModelError(
            f"Importing {header.path.name} needs at least {2 * header.parameters:,} bytes of memory, "
            f"{memory:,} are free.", "Close other programs, or import it on a machine with more memory.")


def _limits(header: GgufHeader) -> tuple[float, int]:
    """Most seconds and most resident bytes that an honest conversion can need, with a wide margin."""
    seconds = 600 + header.file_bytes / 1e6 + header.parameters / 2e6
    memory = 4 * 1024**3 + header.file_bytes + 10 * header.parameters  # two bf16 copies, fp32 while converting
    return seconds, memory


def _run_child(header: GgufHeader, folder: Path, control: Control) -> Iterator[Event]:
    seconds, memory = _limits(header)
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryFile() as errors, _child(header.path, folder, errors) as child:
        lines = _lines_of(child)
        finished = False
        while True:
            control.check()
            if time.monotonic() > deadline or _resident_bytes(child.pid) > memory:
                raise ModelError(f"{header.path.name} could not be converted within {seconds:,.0f} seconds and "
                                 f"{memory:,} bytes of memory.", "The file may be damaged; fetch it again.")
            try:
                line = lines.get(timeout=0.1)
            except queue.Empty:
                continue
            if line is None:
                break
            said = _parse(line)
            if "error" in said:
                raise ModelError(f"{header.path.name} ({header.metadata['general.architecture']}) could not be "
                                 f"converted: {said['error']}.", "Choose the safetensors version of this model.")
            finished = finished or bool(said.get("finished"))
            if "stage" in said:
                yield Progress(str(said["stage"]), int(said["done"]), int(said["total"]), str(said["unit"]))
        if child.wait(timeout=60) != 0 or not finished:
            raise ModelError(f"The conversion of {header.path.name} ended too early (exit code {child.returncode}): "
                             f"{_last_line(errors)}.", "There may be too little memory for this model.")


@contextlib.contextmanager
def _child(file: Path, folder: Path, errors: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """The converting process; killed when the block is left before it has ended."""
    package_root = str(Path(core.__file__).resolve().parent.parent)
    paths = [package_root, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUTF8": "1"}
    command = [sys.executable, "-P", "-m", "core.models.gguf_convert", str(file.resolve()), str(folder)]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def _lines_of(child: "subprocess.Popen[bytes]") -> "queue.Queue[bytes | None]":
    """Lines of the child's output as they come, None at the end; read by a thread so that waiting can be ended."""
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed under us when the child was killed
            for line in child.stdout:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True, name="gguf-output").start()
    return lines


def _parse(line: bytes) -> dict[str, Any]:
    """A progress line; anything else that a library prints is passed over."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _resident_bytes(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0  # it has just ended


def _last_line(errors: IO[bytes]) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - 4096))
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300].rstrip(".") if lines else "it said nothing"
