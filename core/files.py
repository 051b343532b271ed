"""Files appear whole or not at all. The only place that writes to disk.

A file is written under a temporary name in the same folder, flushed to the disk, and renamed.
`AppendWriter` is the exception: it adds whole lines to a log.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from filelock import FileLock, Timeout

from core.errors import CoreError

TEMPORARY_SUFFIX = ".tmp"
_ASKING_SECONDS = 0.05
_asking = threading.Lock()


def _read_umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


# It can only be read by setting it, for the whole process: so once, before there are other threads.
_UMASK = _read_umask()


@contextlib.contextmanager
def atomic_path(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Give a temporary path to write to; on success it replaces `path`, on error it is removed.

    `mode` sets the permissions (0o600 for secrets) before it gets its name; None: as the umask says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode if mode is not None else 0o666 & ~_UMASK)  # mkstemp makes it private
        sync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it is renamed to `path`, on error removed.

    Raises:
        CoreError: `path` exists already.
    """
    if path.exists():
        raise CoreError(f"{path} exists already.", "Choose another name or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent))
    try:
        yield temporary
        publish_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish_folder(temporary: Path, path: Path) -> None:
    """Flush a filled folder to the disk and give it its final name, in the same parent folder.

    For work that is kept when it is interrupted (a download that can go on); else `atomic_folder`.
    """
    for file in sorted(temporary.rglob("*")):
        if file.is_file():
            sync_file(file)
    for folder in [item for item in temporary.rglob("*") if item.is_dir()]:
        sync_folder(folder)
    sync_folder(temporary)
    temporary.chmod(0o777 & ~_UMASK)  # mkdtemp makes it private
    temporary.replace(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent` for what is only needed meanwhile; it is removed at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".work.", suffix=TEMPORARY_SUFFIX, dir=parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unnamed_file(folder: Path) -> IO[bytes]:
    """A file in `folder` for what is only needed meanwhile, unbuffered, to write and read.

    It has no name there: its space is free again when it is closed, and when the process is killed.
    """
    return tempfile.TemporaryFile(buffering=0, prefix=".work.", suffix=TEMPORARY_SUFFIX, dir=folder)


@contextlib.contextmanager
def partial_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that grows from where it ended, in a folder that `publish_folder` will name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        yield file


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """As `atomic_folder`, but an older folder at `path` stays until the new one is whole."""
    fresh = path.with_name(f".{path.name}.new{TEMPORARY_SUFFIX}")
    shutil.rmtree(fresh, ignore_errors=True)
    with atomic_folder(fresh) as temporary:
        yield temporary
    old = path.with_name(f".{path.name}.old{TEMPORARY_SUFFIX}")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.replace(old)
    fresh.replace(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_bytes(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a whole file; `mode` sets its permissions (0o600 for secrets) before it gets its name."""
    with atomic_path(path, mode) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, mode: int | None = None) -> None:
    """Write a whole UTF-8 file with \\n line ends."""
    write_bytes(path, text.encode("utf-8"), mode)


class AppendWriter:
    """Adds whole lines to a file; a torn last line from a crash is cut off when it is opened."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open(path, "ab+")  # noqa: SIM115 - closed by close()
        _cut_torn_line(self._file)

    def write_line(self, text: str, *, durable: bool = False) -> None:
        """Append `text` and a line end; `durable` waits until it is on the disk."""
        self._file.write(text.encode("utf-8") + b"\n")
        self._file.flush()
        if durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush to the disk and close."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _cut_torn_line(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    position = size
    while position > 0:
        start = max(0, position - 65536)
        file.seek(start)
        block = file.read(position - start)
        end = block.rfind(b"\n")
        if end >= 0:
            position = start + end + 1
            break
        position = start
    if position < size:
        file.truncate(position)
    file.seek(0, os.SEEK_END)


def open_log(path: Path) -> IO[bytes]:
    """A new log file, readable by its owner only, for the output of a child process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)


@contextlib.contextmanager
def exclusive_lock(path: Path, busy_message: str) -> Iterator[None]:
    """Hold a lock file; the system frees it when the process dies.

    Raises:
        CoreError: with `busy_message`, if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        # `is_locked` of another program holds the lock for an instant: that must not refuse this one
        lock.acquire(timeout=0.5)
    except Timeout:
        raise CoreError(busy_message, "Wait for it, or stop it in the window that runs it.") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def awaited_lock(path: Path, check: Callable[[], None]) -> Iterator[None]:
    """As `exclusive_lock`, but wait until it is free. `check` is called meanwhile and may raise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    while not lock.is_locked:
        check()
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0.2)
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """True while another process (or another lock object) holds this lock file."""
    if not path.exists():
        return False
    lock = FileLock(path)
    # To ask is to hold the lock for an instant. Who asks at the same moment must not be told that a program holds it:
    # in this process they ask one after the other, of another process the instant is waited for.
    with _asking:
        try:
            lock.acquire(timeout=_ASKING_SECONDS, poll_interval=_ASKING_SECONDS / 10)
        except Timeout:
            return True
        lock.release()
    return False


def sha256(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(folder: Path) -> None:
    """Try to create a file in `folder` (made if missing).

    Raises:
        CoreError: the folder can not be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe", suffix=TEMPORARY_SUFFIX):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise CoreError(f"The folder {folder} can not be written: {reason}.", "Choose another folder.") from None


def free_path(path: Path) -> Path:
    """`path`, or where that is taken path-2, path-3 and so on: the first that does not exist."""
    candidate, number = path, 2
    while os.path.lexists(candidate):
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path` or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def sync_file(path: Path) -> None:
    """Flush one file's content to the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush a folder's names to the disk where the system has that (not Windows)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
