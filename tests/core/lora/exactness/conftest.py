"""Tiny bases built once, and the table that a run of the whole matrix writes."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from matrix import FAMILIES, METHODS, Family, Method
from table import BOUNDS, Found, table_text
from tiny_models import build_tiny
from twins import Base, Twins

OPTION = "--exactness-table"


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Base]:
    """The tiny model of a family."""
    root, found = tmp_path_factory.mktemp("bases"), {}

    def get(family: Family) -> Base:
        if family.name not in found:
            found[family.name] = Base(build_tiny(family.name, root / family.name), family)
        return found[family.name]

    return get


@pytest.fixture
def twins(method: str, family: str, base_of: Callable[[Family], Base], tmp_path: Path) -> Iterator[Twins]:
    """Our model and peft's in one cell of the matrix."""
    chosen: Method = METHODS[method]
    if chosen.title.startswith("QLoRA"):
        pytest.importorskip("bitsandbytes")
    yield Twins(chosen, base_of(FAMILIES[family]), tmp_path / "initial")


@pytest.fixture
def measured(method: str, family: str, record_property: Callable[[str, Any], None]) -> Callable[[str, float], None]:
    """Note a deviation for the table and hold it to its bound."""
    def note(measure: str, deviation: float) -> None:
        record_property("exactness", [measure, method, family, deviation])
        bound = BOUNDS.get(measure)
        assert bound is None or deviation <= bound, f"{measure}: {deviation:.2e} is above {bound:g}"

    return note


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, type=Path, help="write the table of all deviations to this file")


def pytest_configure(config: pytest.Config) -> None:
    target = config.getoption(OPTION, None)
    if target is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Collector(target), "exactness-table")


class Collector:
    """Collects what all tests have measured, those of other processes too."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.found: Found = {}
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed
        if report.when == "call":
            for name, value in report.user_properties:
                if name == "exactness":
                    measure, method, family, deviation = value  # type: ignore[misc]
                    self.found[measure, method, family] = deviation

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A table is written of a run without failures alone."""
        if self.failed or not self.found:
            terminalreporter.write_line(f"{self.target} was left as it is.")
            return
        self.target.write_text(table_text(self.found), encoding="utf-8")
        terminalreporter.write_line(f"Wrote {self.target}.")
