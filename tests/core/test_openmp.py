"""Waiting threads stay awake for a moment, in the command line and in the engine, unless the person chose otherwise."""

import os
import subprocess
import sys

import pytest

from core.engine import child
from core.openmp import set_wait_policy

_NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.parametrize("name", _NAMES)
def test_the_persons_own_choice_goes_before(name: str) -> None:
    chosen = {name: "1"}
    set_wait_policy(chosen)
    assert chosen == {name: "1"}


def test_the_engine_waits_awake_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _NAMES:
        monkeypatch.delenv(name, raising=False)
    chosen = child._environment()
    assert chosen["KMP_BLOCKTIME"] == "1"
    # "active" alone would spin for ever, and without it the spin on a busy machine would be too short
    assert (chosen.get("OMP_WAIT_POLICY") == "ACTIVE") == ("GOMP_SPINCOUNT" in chosen) == (sys.platform == "linux")


def test_the_command_line_sets_it_before_torch_is_there() -> None:
    code = ("import os, sys, core.cli.runner as runner; assert 'torch' not in sys.modules; "
            "runner._quiet_libraries(); print(os.environ['KMP_BLOCKTIME'])")
    environment = {name: value for name, value in os.environ.items() if name not in _NAMES}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "1"
