"""Waiting threads sleep, in the command line and in the engine, unless the person chose otherwise."""

import os
import subprocess
import sys

import pytest

from core.engine import child
from core.openmp import set_wait_policy


def test_the_persons_own_choice_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"OMP_WAIT_POLICY": "ACTIVE"}
    set_wait_policy(chosen)
    assert chosen == {"OMP_WAIT_POLICY": "ACTIVE"}
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert child._environment()["OMP_WAIT_POLICY"] == "PASSIVE"


def test_the_command_line_sets_it_before_torch_is_there() -> None:
    code = ("import os, sys, core.cli.runner as runner; assert 'torch' not in sys.modules; "
            "runner._quiet_libraries(); print(os.environ['OMP_WAIT_POLICY'])")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "PASSIVE"
