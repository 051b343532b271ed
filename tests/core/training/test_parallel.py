"""Several processes train as one does: with gloo, two processes on the CPU, started as torchrun starts them."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from core.config import RunConfig, dump_config, parse_config
from core.control import Control
from core.data.template import EncodedRow
from core.events import CheckpointSaved, Evaluated, Failed, Finished, Note, Planned, StepDone
from core.jobs import Resume, Train
from core.runs.folder import RunFolder
from core.training.checkpoint import damage
from core.training.loop import resume, train
from core.training.parallel import Ranks, divide

REPOSITORY = Path(__file__).resolve().parents[3]
# torchrun itself looks after its processes only every so often; a test need not wait for that
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--monitor-interval", "0.05",
          "--nproc-per-node", "2"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="torchrun's store needs libuv, which wheels there lack")


def _config(model: Path, data: Path, adapter: dict[str, Any] | None = None, **training: object) -> RunConfig:
    training = {"epochs": 20, "batch_size": 5, "warmup_steps": 2, "device": "cpu", "dtype": "fp32",
                "max_steps": 20} | training
    return parse_config({"model": {"path": str(model)}, "adapter": adapter or {"rank": 4}, "training": training,
                         "data": {"train": [str(data)], "validation_fraction": 0.1}})


@contextmanager
def _launched(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """torchrun with two processes of ours; they are gone at the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([*LAUNCH, "-m", "core", *map(str, arguments)], env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        for member in [*_family(process.pid), process]:
            member.kill()
        process.communicate()


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _torchrun(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with _launched(*arguments) as process:
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err


def _run_file(config: RunConfig, tmp_path: Path) -> Path:
    path = tmp_path / "given.toml"
    path.write_text(dump_config(config))
    return path


def _steps(run: Path) -> list[StepDone]:
    return [event for event in RunFolder(run).read_events() if isinstance(event, StepDone)]


def _events(run: Path, kind: type) -> list[Any]:
    return [event for event in RunFolder(run).read_events() if isinstance(event, kind)]


def _largest_difference(one: Path, other: Path) -> float:
    """Between two adapters, or two checkpoints' trained numbers."""
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def _rows(*lengths: int) -> list[EncodedRow]:
    return [EncodedRow(index, np.zeros(length, np.int32), np.ones(length, np.bool_), False, length)
            for index, length in enumerate(lengths)]


def test_rows_are_divided_by_their_tokens_in_their_order() -> None:
    rows = _rows(10, 90, 20, 30, 40)
    first, second = divide(rows, 2)
    assert [row.index for row in first] == [0, 1]
    assert [row.index for row in second] == [2, 3, 4]
    assert divide(rows, 1) == [rows]
    assert [len(share) for share in divide(rows[:1], 3)] == [1, 0, 0]


def test_one_process_alone_changes_nothing() -> None:
    ranks, control, parameter = Ranks(), Control(), torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    assert ranks.control(control) is control
    assert ranks.add_up([parameter], 0.5, 10, 3) == (0.5, 10, 3)
    assert parameter.grad.tolist() == [1.0, 2.0]
    assert ranks.sums(1.0, 2.0) == (1.0, 2.0)
    assert ranks.agreed("anything", lambda: "ours") == "ours"


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks a process that has torch")
def test_two_processes_train_the_adapter_of_one(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """An odd number of rows in a step, and a last step of an epoch with one row, of which the second rank has none."""
    config = _config(tiny_model, data, checkpoint_every=10, evaluate_every=10)
    list(train(Train(config, tmp_path / "one"), Control()))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # as torchrun would, without the seconds of importing torch again
    ranks = [context.Process(target=_train_as, args=(rank, port, Train(config, tmp_path / "two"))) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
    assert [process.exitcode for process in ranks] == [0, 0]
    _require_same_run(RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two"))


def _train_as(rank: int, port: int, job: Train) -> None:
    """In a forked process: train as the process with this rank of two."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    list(train(job, Control()))


@pytest.mark.full
def test_torchrun_trains_the_adapter_of_one_process_and_one_speaks(tiny_model: Path, data: Path, tmp_path: Path
                                                                  ) -> None:
    config = _config(tiny_model, data, checkpoint_every=10, evaluate_every=10)
    list(train(Train(config, tmp_path / "one"), Control()))
    code, out, err = _torchrun("train", _run_file(config, tmp_path), "--run-dir", tmp_path / "two", "--json")
    assert code == 0, err
    two = RunFolder(tmp_path / "two")
    _require_same_run(RunFolder(tmp_path / "one"), two)
    assert len(out.splitlines()) == len(list(two.read_events()))
    assert json.loads(out.splitlines()[-1])["outcome"] == "finished"


def _require_same_run(one: RunFolder, two: RunFolder) -> None:
    """Gradients within 1e-6, adapters after 20 steps within 1e-5."""
    assert _events(two.path, Planned)[0].device == "2 x cpu"
    for ours, theirs in zip(_steps(one.path), _steps(two.path), strict=True):
        assert (ours.tokens, ours.supervised_tokens, ours.learning_rate) == (
            theirs.tokens, theirs.supervised_tokens, theirs.learning_rate)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
    # Adam's first moment is a mean of the gradients so far
    states = [load_file(run.checkpoint(10) / "optimizer.safetensors") for run in (one, two)]
    moments = [name for name in states[0] if name.endswith(".exp_avg")]
    assert max(float(states[0][name].abs().max()) for name in moments) > 1e-3
    for name in moments:
        assert float((states[0][name] - states[1][name]).abs().max()) < 1e-6 * (1 - 0.9 ** 10)
    name = "adapter_model.safetensors"
    assert _largest_difference(one.checkpoint(20) / name, two.checkpoint(20) / name) < 1e-5
    assert _largest_difference(one.adapter / name, two.adapter / name) < 1e-5
    assert [item.loss for item in _events(one.path, Evaluated)] == pytest.approx(
        [item.loss for item in _events(two.path, Evaluated)], rel=1e-6)
    assert two.config().training.device == "cpu"


@pytest.mark.full
@pytest.mark.parametrize(("adapter", "training"), [
    ({"method": "dora", "rank": 4}, {}),
    ({"method": "adalora", "rank": 2, "initial_rank": 4}, {}),
    ({"method": "qlora", "rank": 4}, {}),
    ({"method": "full"}, {}),
    ({"init": "pissa", "rank": 4}, {}),
    ({}, {"parallel": "shard"}),
    ({"method": "dora"}, {"parallel": "shard", "batch_size": 1, "gradient_accumulation": 3}),
    ({}, {"batch_size": 1, "gradient_accumulation": 5}),
    ({}, {"packing": "off"}),
], ids=lambda value: "-".join(map(str, value.values())) or "lora")
def test_what_holds_with_other_methods(adapter: dict[str, Any], training: dict[str, Any], tiny_model: Path,
                                       data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, adapter, **training)
    list(train(Train(config, tmp_path / "one"), Control()))
    code, _, err = _torchrun("train", _run_file(config, tmp_path), "--run-dir", tmp_path / "two")
    assert code == 0, err
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    names = [path.name for path in one.final.glob("*.safetensors")]
    assert names
    for name in names:
        assert _largest_difference(one.final / name, two.final / name) < 1e-5
    if config.adapter.method == "adalora":  # the ranks that are kept come from the gradients of all
        assert [event.ranks for event in _ranks_chosen(one)] == [event.ranks for event in _ranks_chosen(two)]


@pytest.mark.full
def test_every_process_computes_once_what_its_rows_begin_with(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, batch_size=24)
    whole = _config(tiny_model, data, batch_size=24, shared_prefix="off")
    list(train(Train(whole, tmp_path / "one"), Control()))
    code, _, err = _torchrun("train", _run_file(config, tmp_path), "--run-dir", tmp_path / "two")
    assert code == 0, err
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    told = [any("once for all of them" in note.message for note in _events(run.path, Note)) for run in (one, two)]
    assert told == [False, True]
    name = "adapter_model.safetensors"
    assert _largest_difference(one.adapter / name, two.adapter / name) < 1e-5


def _ranks_chosen(run: RunFolder) -> list[Any]:
    return [event for event in run.read_events() if type(event).__name__ == "RanksChosen"]


@pytest.mark.full
def test_a_stop_reaches_all_and_the_run_goes_on(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """Stopped by a signal to torchrun, gone on with in two processes: as without a stop, in one."""
    config = _config(tiny_model, data, max_steps=100, checkpoint_every=0, evaluate_every=0)
    run = RunFolder(tmp_path / "run")
    with _launched("train", _run_file(config, tmp_path), "--run-dir", run.path) as process:
        _wait_for_steps(run.path, 5)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=100)
    assert run.state() == "stopped"
    stopped_at = len(_steps(run.path))
    assert 5 <= stopped_at < 100
    assert damage(run.checkpoint(stopped_at)) == ""
    code, _, err = _torchrun("resume", run.path)
    assert code == 0, err
    assert [step.step for step in _steps(run.path)] == list(range(1, 101))
    list(train(Train(config, tmp_path / "one"), Control()))
    one = [step.loss for step in _steps(tmp_path / "one")]
    assert [step.loss for step in _steps(run.path)] == pytest.approx(one, rel=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_with_one_sentence_and_a_whole_checkpoint(
        rank: int, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, max_steps=100_000, epochs=1000, checkpoint_every=5, evaluate_every=0)
    run = RunFolder(tmp_path / "run")
    with _launched("train", _run_file(config, tmp_path), "--run-dir", run.path) as process:
        _wait_for_steps(run.path, 12)
        _worker(process.pid, rank).kill()
        _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    sentence = "Another process of this run has ended unexpectedly."
    assert err.count(sentence) == 1
    assert "Traceback (most recent call last)" not in err.split(sentence)[0]
    newest = run.checkpoint_folders()[-1]
    assert damage(newest) == ""
    if rank == 1:  # the first process could still write: no step is lost
        assert newest == run.checkpoint(len(_steps(run.path)))
        assert _events(run.path, Failed)[-1].message == sentence
        assert _events(run.path, CheckpointSaved)[-1].step == len(_steps(run.path))
    control = Control()
    for event in resume(Resume(run.path), control):  # alone, from what is there
        if isinstance(event, StepDone):
            control.stop()
    assert run.state() == "stopped"
    assert _events(run.path, Finished)[-1].outcome == "stopped"


@pytest.mark.full
def test_an_error_of_one_process_is_told_once(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    wrong = _config(tiny_model, data, {"target_modules": ["no_such_layer"]})
    code, _, err = _torchrun("train", _run_file(wrong, tmp_path), "--run-dir", tmp_path / "run")
    assert code != 0
    assert err.count("no_such_layer") == 1
    assert not (tmp_path / "run").exists()


def _wait_for_steps(run: Path, steps: int) -> None:
    end = time.monotonic() + 120
    while len(_steps(run)) < steps:
        assert time.monotonic() < end, "the run does not begin"
        threading.Event().wait(0.05)


def _worker(pid: int, rank: int) -> psutil.Process:
    """torchrun's process with this rank."""
    return next(child for child in _family(pid) if child.environ().get("RANK") == str(rank))
