"""The set-up script: what is done is skipped, what can not be done is told in a sentence."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "setup.py"


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module, working in an empty folder, with its steps only written down."""
    spec = importlib.util.spec_from_file_location("setup_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt", "tools/setup.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((SCRIPT.parents[1] / name).read_bytes())
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "PYTHON", tmp_path / ".venv" / "python")
    module.steps = []

    def make() -> None:
        module.steps.append("environment")
        module.VENV.mkdir(exist_ok=True)
        module.PYTHON.touch()

    monkeypatch.setattr(module, "make_environment", make)
    monkeypatch.setattr(module, "install_torch", lambda: module.steps.append("torch"))
    monkeypatch.setattr(module, "install_program", lambda dev: module.steps.append("dev" if dev else "run"))
    monkeypatch.setattr(module, "fetch_starter_model", lambda: module.steps.append("starter"))
    yield module


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["setup.py", *arguments])
    module.steps.clear()
    assert module.main() == 0
    return list(module.steps)


def test_what_is_done_is_skipped(setup: ModuleType, monkeypatch: pytest.MonkeyPatch):
    assert call(setup, monkeypatch) == ["environment", "torch", "run", "starter"]
    assert call(setup, monkeypatch) == []
    assert call(setup, monkeypatch, "--dev") == ["environment", "torch", "dev", "starter"]
    assert call(setup, monkeypatch, "--dev") == []
    assert call(setup, monkeypatch) == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_input_is_set_up_again(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str):
    call(setup, monkeypatch, "--dev")
    with (setup.ROOT / name).open("a") as file:
        file.write("\n# changed\n")
    assert call(setup, monkeypatch) == ["environment", "torch", "run", "starter"]
    assert call(setup, monkeypatch, "--dev") == ["environment", "torch", "dev", "starter"]


def test_a_removed_environment_is_made_again(setup: ModuleType, monkeypatch: pytest.MonkeyPatch):
    call(setup, monkeypatch)
    setup.PYTHON.unlink()
    assert call(setup, monkeypatch)[0] == "environment"


def test_a_step_that_fails_leaves_no_stamp(setup: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise setup.SetupError("the starter model could not be prepared.")

    with monkeypatch.context() as patch:
        patch.setattr(setup, "fetch_starter_model", fail)
        patch.setattr(sys, "argv", ["setup.py"])
        assert setup.main() == 1
    assert "Set-up stopped: the starter model could not be prepared." in capsys.readouterr().err
    assert call(setup, monkeypatch) == ["environment", "torch", "run", "starter"]


def test_an_old_python_is_told(setup: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer; this is Python 3\.9"):
        setup.use_a_new_enough_python()


def test_a_newer_python_is_used(setup: ModuleType, monkeypatch: pytest.MonkeyPatch):
    started: list[list[str]] = []
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(setup.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "python3.12" else None)
    monkeypatch.setattr(setup.os, "execv", lambda path, arguments: started.append([path, *arguments]))
    with pytest.raises(SystemExit):  # a real execv does not come back
        setup.use_a_new_enough_python()
    assert started[0][0] == "/usr/bin/python3.12"


def test_torch_is_pinned_without_a_local_version(setup: ModuleType):
    assert setup.pinned("torch").startswith("torch==")
    assert "+" not in setup.pinned("torch")
    with pytest.raises(setup.SetupError):
        setup.pinned("no-such-package")


def test_every_direct_dependency_is_pinned():
    import re
    import tomllib

    project = tomllib.loads((SCRIPT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    pins = (SCRIPT.parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonical(line.split("==")[0]) for line in pins if "==" in line}
    names = {canonical(re.split(r"[<>=\[]", requirement)[0]) for requirement in wanted}
    assert names <= pinned


def canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")
