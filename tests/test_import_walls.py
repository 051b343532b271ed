"""The walls between window and core, each checked in a fresh interpreter."""

import ast
import graphlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import core

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers")
WINDOW = ("PySide6", "pyqtgraph", "qtawesome", "app")
LIGHT_FACE = (
    "core.config", "core.control", "core.errors", "core.estimate", "core.events", "core.files", "core.jobs",
    "core.paths", "core.targets", "core.words", "core.engine.client", "core.engine.job_table", "core.__main__",
)


def loaded_after(statement: str, names: tuple[str, ...]) -> list[str]:
    """Which of `names` a fresh interpreter has loaded after a statement."""
    code = f"import sys, json\n{statement}\nprint(json.dumps([name for name in {names!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120,
                          env=_environment(), check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": str(REPOSITORY)}


def core_modules() -> list[str]:
    return sorted(module.name for module in pkgutil.walk_packages(core.__path__, "core."))


def runs_modules() -> list[str]:
    return [name for name in core_modules() if name.startswith("core.runs.")]


def test_the_window_imports_no_torch():
    assert loaded_after("import app.program", (*HEAVY, "core.__main__", "peft")) == []


def test_every_page_of_the_window_imports_no_torch():
    names = sorted(f"app.{path.relative_to(REPOSITORY / 'app').with_suffix('').as_posix().replace('/', '.')}"
                   for path in (REPOSITORY / "app").rglob("*.py") if path.stem not in ("__init__", "__main__"))
    assert loaded_after("import " + ", ".join(names), (*HEAVY, "peft")) == []


def test_the_core_imports_no_window():
    assert loaded_after("import " + ", ".join(core_modules()), (*WINDOW, "peft")) == []


def test_the_light_face_imports_no_torch():
    names = [*LIGHT_FACE, *runs_modules()]
    assert loaded_after("import " + ", ".join(names), HEAVY) == []


@pytest.mark.parametrize("module", LIGHT_FACE)
def test_each_module_of_the_light_face_stands_alone(module: str):
    assert loaded_after(f"import {module}", (*HEAVY, *WINDOW)) == []


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["init", "run.toml"]])
def test_quick_sub_commands_import_neither_torch_nor_qt(arguments: list[str], tmp_path: Path):
    statement = (f"import os; os.chdir({str(tmp_path)!r})\nfrom app.__main__ import main\n"
                 f"try:\n    code = main({arguments!r})\nexcept SystemExit as ended:\n    code = ended.code\n"
                 "assert code == 0, code")
    assert loaded_after(statement, (*HEAVY, *WINDOW[:-1])) == []


def test_nothing_in_the_window_imports_in_a_circle():
    """Imports within functions and for types alone count, too: they hide a circle, they do not open it."""
    names = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path
             for path in (REPOSITORY / "app").rglob("*.py") if path.stem != "__init__"}
    imported = {name: {found for found in _imports_of(path) if found in names} for name, path in names.items()}
    try:
        list(graphlib.TopologicalSorter(imported).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def _imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_contracts_between_the_rooms_hold():
    done = subprocess.run([str(Path(sys.executable).with_name("lint-imports"))], capture_output=True, text=True,
                          cwd=REPOSITORY, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
