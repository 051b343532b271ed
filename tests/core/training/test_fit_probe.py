"""A fit probe measures a real step in a process of its own, and says why where that fails."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from core.config import RunConfig, parse_config
from core.control import Control
from core.errors import Cancelled, CoreError
from core.events import MemoryMeasured, Progress, Result
from core.jobs import ProbeMemory
from core.training.fit_probe import probe_memory


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> RunConfig:
    data = tmp_path / "rows.jsonl"
    rows = [f'{{"instruction": "Count", "output": "{"one " * count}"}}\n' for count in (1, 40, 2, 3)]
    data.write_text("".join(rows))
    return parse_config({"model": {"path": str(tiny_model)}, "adapter": {"rank": 4},
                         "data": {"train": [str(data)], "max_length": 64, "validation_fraction": 0.0},
                         "training": {"batch_size": 1, "device": "cpu", "dtype": "fp32"}})


def test_the_longest_row_is_measured(config: RunConfig, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("run.toml"))
    found = list(probe_memory(ProbeMemory(config), Control()))
    measured = found[-2]
    assert isinstance(measured, MemoryMeasured) and measured.tokens == 63 and measured.device == "cpu"
    assert 2e8 < measured.bytes < 1e9 and measured.seconds > 0
    assert isinstance(found[-1], Result) and found[-1].values["bytes"] == measured.bytes
    assert any(isinstance(event, Progress) and event.stage == "Measuring a step" for event in found)
    assert set(tmp_path.rglob("run.toml")) == before  # no run is left behind


@pytest.mark.full  # another start of Python and torch
def test_what_would_keep_a_run_from_starting_is_told(config: RunConfig) -> None:
    wrong = config.model_copy(update={"data": config.data.model_copy(update={"train": ("/no/such/file.jsonl",)})})
    with pytest.raises(CoreError, match=r"file\.jsonl"):
        list(probe_memory(ProbeMemory(wrong), Control()))


def test_a_shared_base_is_not_measured_as_if_it_were_whole(config: RunConfig) -> None:
    shared = config.model_copy(update={"training": config.training.model_copy(update={"parallel": "shard"})})
    with pytest.raises(CoreError, match="several GPUs share"):
        list(probe_memory(ProbeMemory(shared), Control()))


def test_a_stop_ends_the_process(config: RunConfig) -> None:
    control = Control()
    control.stop()
    with pytest.raises(Cancelled):
        list(probe_memory(ProbeMemory(config), control))
    assert not _children()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_a_process_that_the_system_ends_did_not_fit(config: RunConfig) -> None:
    def kill() -> None:
        while not _children():
            time.sleep(0.01)
        _children()[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(CoreError, match="more memory than this machine has"):
        list(probe_memory(ProbeMemory(config), Control()))
    killer.join()


def _children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True)
            if "core.training.fit_step" in " ".join(child.cmdline())]
