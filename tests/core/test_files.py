import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from core import files
from core.errors import CoreError
from core.files import AppendWriter, atomic_folder, atomic_path, exclusive_lock, is_locked, write_bytes, write_text

posix = pytest.mark.skipif(os.name == "nt", reason="permissions and signals of POSIX")
REPOSITORY = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_with_the_umask_s_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "new folder" / "file", "text\nü")
    assert (tmp_path / "new folder" / "file").read_bytes() == "text\nü".encode()
    write_text(tmp_path / "secret", "token", mode=0o600)
    if os.name != "nt":
        umask = os.umask(0)
        os.umask(umask)
        assert (tmp_path / "new folder" / "file").stat().st_mode & 0o777 == 0o666 & ~umask
        assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_an_error_while_writing_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_text(target, "old")

    def half_way() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):
        half_way()
    assert names(tmp_path) == ["file"]
    assert target.read_text() == "old"


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "mkstemp"])
def test_a_full_disk_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    target = tmp_path / "file"
    write_text(target, "old")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    where: dict[str, tuple[object, str]] = {
        "write": (Path, "write_bytes"), "fsync": (files.os, "fsync"), "replace": (Path, "replace"),
        "mkstemp": (files.tempfile, "mkstemp")}
    monkeypatch.setattr(*where[step], full)
    with pytest.raises(OSError) as caught:
        write_text(target, "new")
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["file"]
    assert target.read_text() == "old"


KILLED_AT = """
import os, sys
from pathlib import Path
from core import files
target, kill_at = Path(sys.argv[1]), int(sys.argv[2])
count = 0
def watch(event, arguments):
    global count
    if event in ("open", "os.rename", "os.chmod", "os.remove", "tempfile.mkstemp", "os.truncate"):
        count += 1
        if count == kill_at:
            os._exit(9)
sys.addaudithook(watch)
files.write_text(target, "new" * 10000)
os._exit(0)
"""


def test_killed_at_any_operation_the_file_is_old_or_new(tmp_path: Path) -> None:
    target = tmp_path / "file"
    outcomes = []
    for kill_at in range(1, 12):
        write_text(target, "old")
        done = subprocess.run([sys.executable, "-c", KILLED_AT, str(target), str(kill_at)], cwd=REPOSITORY,
                              timeout=30, check=False)
        content = target.read_text()
        assert content in ("old", "new" * 10000), f"a mix after operation {kill_at}"
        outcomes.append(content)
        if done.returncode == 0:  # it got through: no operation is left
            break
    else:
        pytest.fail("more operations than were tried")
    assert len(outcomes) >= 5
    assert outcomes[0] == "old"
    assert outcomes[-1] != "old"


def test_what_was_written_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        order.append("folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "file")
        real_fsync(handle)

    def replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_bytes(tmp_path / "file", b"x")
    if Path("/proc/self/fd").exists():
        assert order == ["file", "rename", "folder"]
    else:
        assert order.index("rename") > 0


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder"

    def fill(error: Exception | None) -> None:
        with atomic_folder(target) as temporary:
            (temporary / "below").mkdir()
            (temporary / "below" / "file").write_text("x")
            assert not target.exists()
            if error:
                raise error

    with pytest.raises(ValueError):
        fill(ValueError())
    assert names(tmp_path) == []
    fill(None)
    assert (target / "below" / "file").read_text() == "x"
    with pytest.raises(CoreError, match="exists already"):
        fill(None)
    assert names(tmp_path) == ["folder"]


def test_lines_are_appended(tmp_path: Path) -> None:
    for part in ("one", "zwei ü"):
        with AppendWriter(tmp_path / "log") as log:
            log.write_line(part, durable=True)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "one\nzwei ü\n"


@pytest.mark.parametrize(("before", "after"), [
    (b"", b""), (b"torn", b""), (b"one\n", b"one\n"), (b"one\ntwo\nto", b"one\ntwo\n"), (b"\n\n", b"\n\n"),
    (b"one\n" + b"x" * 200_000, b"one\n"), (b"x" * 200_000, b""), (b"x" * 70_000 + b"\ntorn", b"x" * 70_000 + b"\n")])
def test_a_torn_last_line_is_cut_off_when_the_log_is_opened(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(before)
    with AppendWriter(path) as log:
        log.write_line("next")
    assert path.read_bytes() == after + b"next\n"


def test_every_way_to_tear_a_log_leaves_its_whole_lines(tmp_path: Path) -> None:
    whole = b'{"a": 1}\n{"b": 2}\n{"c": 3}\n'
    path = tmp_path / "log"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        AppendWriter(path).close()
        assert path.read_bytes() == whole[: whole.rfind(b"\n", 0, size) + 1]


def test_a_lock_refuses_the_second_and_is_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "folder" / ".lock"
    assert not is_locked(path)
    with exclusive_lock(path, "in use"):
        assert is_locked(path)
        with pytest.raises(CoreError, match="in use"), exclusive_lock(path, "in use"):
            pass
    assert not is_locked(path)


def test_looking_at_a_lock_does_not_refuse_who_wants_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            is_locked(path)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(30):
            with exclusive_lock(path, "in use"):
                pass
    finally:
        done.set()
        for looker in lookers:
            looker.join()


def test_who_looks_at_the_same_time_does_not_take_the_other_for_a_program(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    with exclusive_lock(path, "in use"):
        pass
    with ThreadPoolExecutor(3) as lookers:
        assert not any(lookers.map(lambda _: is_locked(path), range(2_000)))
    monkeypatch.setattr(files, "_ASKING_SECONDS", 5.0)  # however busy this machine is
    other = FileLock(path, thread_local=False)  # another process looks, and is interrupted while it does
    other.acquire(timeout=0)
    freeing = threading.Timer(0.02, other.release)
    freeing.start()
    assert not is_locked(path)
    freeing.join()


@posix
def test_the_lock_of_a_killed_program_is_free(tmp_path: Path) -> None:
    code = ("import sys, time\nfrom pathlib import Path\nfrom core.files import exclusive_lock\n"
            "with exclusive_lock(Path(sys.argv[1]), ''):\n    print('held', flush=True)\n    time.sleep(60)\n")
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE,
                              cwd=REPOSITORY)
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    assert is_locked(tmp_path / ".lock")
    holder.kill()
    holder.communicate()
    assert not is_locked(tmp_path / ".lock")


def test_a_folder_that_can_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.require_writable(tmp_path / "new")
    assert names(tmp_path / "new") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CoreError, match="can not be written"):
        files.require_writable(tmp_path / "file" / "below")

    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", read_only)
    with pytest.raises(CoreError, match="Read-only file system"):
        files.require_writable(tmp_path / "new")


def test_a_free_path_is_the_first_that_does_not_exist(tmp_path: Path) -> None:
    assert files.free_path(tmp_path / "run.v1") == tmp_path / "run.v1"
    (tmp_path / "run.v1").mkdir()
    assert files.free_path(tmp_path / "run.v1") == tmp_path / "run.v1-2"
    (tmp_path / "run.v1-2").write_text("x")
    assert files.free_path(tmp_path / "run.v1") == tmp_path / "run.v1-3"


def test_free_bytes_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert files.free_bytes(tmp_path / "a" / "b") > 0


@posix
def test_a_log_is_private(tmp_path: Path) -> None:
    with files.open_log(tmp_path / "logs" / "log") as log:
        log.write(b"x")
    assert (tmp_path / "logs" / "log").stat().st_mode & 0o777 == 0o600
