"""Waiting threads stay awake for a moment, in the command line and in the engine, unless the person chose otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core import openmp
from core.engine import child
from core.openmp import set_wait_policy

_NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def test_the_persons_own_choice_goes_before() -> None:
    for chosen in ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "7"}):
        found = dict(chosen)
        set_wait_policy(found)
        assert found == chosen
    spins = {"GOMP_SPINCOUNT": "7"}
    set_wait_policy(spins)
    assert spins["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize(("told", "policy", "spins"), [("5 0 1", "ACTIVE", "20000"), ("0 0 0", "PASSIVE", "1000"),
                                                       (None, "PASSIVE", "1000"), ("x", "PASSIVE", "1000")])
def test_the_long_spin_is_only_where_a_busy_machine_is_seen(
        told: str | None, policy: str, spins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if told is not None:
        (tmp_path / "schedstat").write_text(told)
    monkeypatch.setattr(openmp, "_STATISTICS", tmp_path / "schedstat")
    monkeypatch.setattr(sys, "platform", "linux")
    for name in _NAMES:
        monkeypatch.delenv(name, raising=False)
    chosen = child._environment()
    assert (chosen["OMP_WAIT_POLICY"], chosen["GOMP_SPINCOUNT"]) == (policy, spins)
    assert ("KMP_BLOCKTIME" in chosen) == (policy == "ACTIVE")


def test_elsewhere_threads_sleep_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not openmp.sees_contention()


def test_the_command_line_sets_it_before_torch_is_there() -> None:
    code = ("import os, sys, core.cli.runner as runner; assert 'torch' not in sys.modules; "
            "runner._quiet_libraries(); print('OMP_WAIT_POLICY' in os.environ)")
    environment = {name: value for name, value in os.environ.items() if name not in _NAMES}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "True"
