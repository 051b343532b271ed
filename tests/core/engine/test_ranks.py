"""A run on all devices, as the window starts it: several processes, one stream of events, the same commands."""

import json
import sys
from pathlib import Path

import psutil
import pytest
from engine_help import lives, wait_until

from core.config import RunConfig, parse_config
from core.control import Control
from core.engine.client import EngineClient, Patience
from core.events import CheckpointSaved, Failed, Planned, Result, StepDone
from core.jobs import Resume, Train
from core.launch import Place, place
from core.runs.folder import RunFolder


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> RunConfig:
    """A long run on all devices, which are the CPU here."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": f"{n} teas"},
                                                       {"role": "assistant", "content": f"{n}"}]}) for n in range(24)))
    return parse_config({"model": {"path": str(tiny_model)}, "data": {"train": [str(rows)], "validation_fraction": 0.0},
                         "training": {"device": "all", "dtype": "fp32", "max_steps": 2000, "epochs": 1000,
                                      "batch_size": 4, "checkpoint_every": 0}})


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert place() == Place()
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert place() == Place(3, 1, 8)
    assert not place().first
    assert place().words == "process 4 of 8"


def test_the_client_knows_what_computes(make_client: "type[EngineClient]") -> None:
    client = make_client()
    client.start()
    wait_until(lambda: client.state == "idle")
    assert (client.hardware.gpus, client.hardware.accelerator) == (2, "A GPU · 80 GB")  # as the fake says


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's store needs libuv, which wheels there lack")
def test_a_run_on_all_devices_is_followed_stopped_and_gone_on_with(
        config: RunConfig, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = RunFolder(tmp_path / "run")
    client = EngineClient("train", patience=Patience(silence=60.0, after_stop=60.0), together="2")
    try:
        for job, last in ((Train(config, run.path), 6), (Resume(run.path), 9)):
            control, seen, family = Control(), [], []
            for event in client.run(job, control):
                seen.append(event)
                if isinstance(event, StepDone) and event.step == 1:
                    control.checkpoint()
                if isinstance(event, StepDone) and event.step >= last and not control.stop_requested:
                    family = [child.pid for child in psutil.Process(client.pid).children(recursive=True)]
                    assert (run.path / "engine.json").exists()  # another window can follow it
                    control.stop()
            assert not [event for event in seen if isinstance(event, Failed)]
            saved = [event.step for event in seen if isinstance(event, CheckpointSaved)]
            assert len(saved) == (2 if isinstance(job, Train) else 1)  # the one asked for, and that of the stop
            assert isinstance(seen[-1], Result)
            assert seen[-1].values["outcome"] == "stopped"
            assert [event.device for event in seen if isinstance(event, Planned)] == ["2 x cpu"]
            assert len(family) >= 2
            wait_until(lambda family=family: not any(lives(pid) for pid in family))
            assert client.state == "closed"
        assert run.config().training.device == "all"
        steps = [event.step for event in run.read_events() if isinstance(event, StepDone)]
        assert steps == list(range(1, len(steps) + 1))
    finally:
        client.kill()
