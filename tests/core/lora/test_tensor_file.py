"""Tensor files: whole, or an error of the system in its own terms."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from core.lora import tensor_file
from core.lora.tensor_file import write_tensors

REPOSITORY = Path(__file__).resolve().parents[3]
TENSORS = {"a": torch.arange(6.0).reshape(2, 3)}


def test_tensors_come_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"format": "pt"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], TENSORS["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on the size of files")
def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    program = (
        "import errno, resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from core.lora.tensor_file import write_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"  # as near to a full disk as a test can come
        "try:\n"
        "    write_tensors(Path(sys.argv[1]), {'a': torch.zeros(100_000)})\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno], error.filename)\n"
    )
    file = tmp_path / "a.safetensors"
    done = subprocess.run([sys.executable, "-c", program, str(file)], cwd=REPOSITORY, capture_output=True, text=True,
                          check=True)
    assert done.stdout.split() == ["EFBIG", str(file)]
    assert not file.exists()


def test_an_error_of_the_library_itself_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: dict, path: Path, metadata: dict | None = None) -> None:
        raise SafetensorError("Error while serializing: no such type")

    monkeypatch.setattr(tensor_file, "save_file", fail)
    with pytest.raises(SafetensorError):
        write_tensors(tmp_path / "a.safetensors", TENSORS)
    assert not list(tmp_path.iterdir())
