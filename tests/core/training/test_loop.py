"""The training loop: it learns, it can be stopped, killed and resumed, and it says what is wrong."""

import dataclasses
import errno
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from core.config import RunConfig, parse_config
from core.control import Control
from core.errors import CoreError
from core.events import CheckpointSaved, Evaluated, Event, Failed, Finished, Planned, Result, Started, StepDone, Warned
from core.jobs import Resume, Train
from core.lora import tensor_file
from core.lora.adapter_file import read_adapter
from core.lora.inject import lora_layers
from core.runs.folder import RunFolder
from core.training import loop
from core.training.checkpoint import damage
from core.training.loop import resume, train
from core.training.schedule import learning_rate_at, total_steps
from core.training.setup import Setup


def _config(model: Path, data: Path, adapter: dict | None = None, **training: object) -> RunConfig:
    training = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "device": "cpu",
                "dtype": "fp32"} | training
    return parse_config({"model": {"path": str(model)}, "adapter": adapter or {"rank": 4}, "training": training,
                         "data": {"train": [str(data)], "validation_fraction": 0.1}})


def _of(kind: type, events: list[Event]) -> list:
    return [event for event in events if isinstance(event, kind)]


def test_a_run_learns_and_leaves_a_whole_folder(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, evaluate_every=5, checkpoint_every=5)
    events = list(train(Train(config, tmp_path / "run"), Control()))
    run = RunFolder(tmp_path / "run")
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Result)
    steps = _of(StepDone, events)
    assert [step.step for step in steps] == list(range(1, 19))
    assert steps[-1].loss < 0.6 * steps[0].loss
    assert all(step.tokens > step.supervised_tokens > 0 for step in steps)
    assert _of(Planned, events)[0].total_steps == 18
    evaluated = _of(Evaluated, events)
    assert [item.step for item in evaluated] == [0, 5, 10, 15, 18]
    assert evaluated[0].loss > evaluated[-1].loss
    assert not evaluated[0].best
    assert list(run.read_events()) == events
    assert run.state() == "finished"
    assert run.config().training.packing == "on"
    best = min(evaluated, key=lambda item: item.loss)
    assert events[-1].values["adapter_step"] == best.step
    kept = [folder.name for folder in run.checkpoint_folders()]
    assert kept[-2:] == ["step-000015", "step-000018"]
    assert all(not damage(folder) for folder in run.checkpoint_folders())
    for name, pair in read_adapter(run.adapter).pairs.items():
        assert torch.equal(pair.lora_b, read_adapter(run.checkpoint(best.step)).pairs[name].lora_b)


def test_the_same_seed_gives_the_same_run_bit_for_bit(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        config = _config(tiny_model, data, {"rank": 4, "dropout": 0.2}, max_steps=6)
        list(train(Train(config, tmp_path / name), Control()))
        files.append((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_accumulation_and_batch_size_give_the_same_gradient(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    losses = []
    for name, batch, accumulation in (("a", 8, 1), ("b", 2, 4)):
        config = _config(tiny_model, data, batch_size=batch, gradient_accumulation=accumulation, max_steps=5)
        events = list(train(Train(config, tmp_path / name), Control()))
        losses.append([(step.loss, step.grad_norm) for step in _of(StepDone, events)])
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4)


@pytest.mark.parametrize("packing", ["on", pytest.param("off", marks=pytest.mark.full)])
def test_packing_changes_nothing_but_the_speed(tiny_model: Path, data: Path, tmp_path: Path, packing: str) -> None:
    config = _config(tiny_model, data, packing=packing, max_steps=3)
    reference = _config(tiny_model, data, packing="auto", batch_size=1, gradient_accumulation=4, max_steps=3)
    first, second = ([step.loss for step in _of(StepDone, list(train(Train(item, tmp_path / name), Control())))]
                     for name, item in (("a", config), ("b", reference)))
    assert first == pytest.approx(second, rel=1e-4)


@pytest.mark.parametrize("evaluate_every", [pytest.param(0, marks=pytest.mark.full), 5])
def test_a_killed_run_goes_on_to_the_same_adapter_bit_for_bit(tiny_model: Path, data: Path, tmp_path: Path,
                                                                 evaluate_every: int) -> None:
    config = _config(tiny_model, data, {"rank": 4, "dropout": 0.2}, checkpoint_every=4, evaluate_every=evaluate_every)
    list(train(Train(config, tmp_path / "whole"), Control()))
    stream = train(Train(config, tmp_path / "killed"), Control())
    for event in stream:
        if isinstance(event, StepDone) and event.step == 11:
            break
    _die(stream, tmp_path / "killed")
    run = RunFolder(tmp_path / "killed")
    assert run.state() == "interrupted"
    events = list(resume(Resume(run.path), Control()))
    assert _of(StepDone, events)[0].step == (9 if evaluate_every == 0 else 11)  # the best one is saved, too
    assert [step.step for step in _of(StepDone, list(run.read_events()))] == list(range(1, 19))
    whole = (tmp_path / "whole" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == whole
    assert run.state() == "finished"


def _die(stream, path: Path) -> None:
    """Leave the generator as a dead process would: nothing after this point is written."""
    log = (path / "events.jsonl").read_bytes()
    stream.close()
    (path / "events.jsonl").write_bytes(log + b'{"event": "Step')


def test_a_run_killed_before_its_first_checkpoint_starts_over(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    stream = train(Train(_config(tiny_model, data, max_steps=6), tmp_path / "run"), Control())
    for event in stream:
        if isinstance(event, StepDone) and event.step == 3:
            break
    _die(stream, tmp_path / "run")
    list(resume(Resume(tmp_path / "run"), Control()))
    steps = [step.step for step in _of(StepDone, list(RunFolder(tmp_path / "run").read_events()))]
    assert steps == list(range(1, 7))


def test_stop_keeps_the_adapter_and_the_run_can_go_on(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    control, seen = Control(), []
    for event in train(Train(_config(tiny_model, data), tmp_path / "run"), control):
        seen.append(event)
        if isinstance(event, StepDone) and event.step == 7:
            control.stop()
    assert _of(Finished, seen)[0].outcome == "stopped"
    assert _of(CheckpointSaved, seen)[-1].step == 7
    assert read_adapter(tmp_path / "run" / "adapter").pairs
    assert RunFolder(tmp_path / "run").state() == "stopped"
    events = list(resume(Resume(tmp_path / "run"), Control()))
    assert _of(StepDone, events)[0].step == 8
    assert events[-1].values["outcome"] == "finished"
    with pytest.raises(CoreError, match="finished already"):
        list(resume(Resume(tmp_path / "run"), Control()))


def test_stop_before_the_first_step_leaves_an_adapter_too(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    control = Control()
    for event in train(Train(_config(tiny_model, data), tmp_path / "run"), control):
        if isinstance(event, Planned):
            control.stop()
    assert read_adapter(tmp_path / "run" / "adapter").pairs
    list(resume(Resume(tmp_path / "run"), Control()))


def test_dropout_goes_on_after_an_evaluation(
        tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[set[bool]] = []
    real = loop.one_step

    def watched(setup: Setup, *args):
        modes.append({layer.training for layer in lora_layers(setup.model).values()})
        assert not setup.model.training
        return real(setup, *args)

    monkeypatch.setattr(loop, "one_step", watched)
    config = _config(tiny_model, data, {"rank": 4, "dropout": 0.2}, evaluate_every=2, max_steps=5)
    list(train(Train(config, tmp_path / "run"), Control()))
    assert modes == [{True}] * 5


def test_a_damaged_checkpoint_is_passed_over_and_kept(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, checkpoint_every=3, max_steps=9, evaluate_every=3)
    list(train(Train(config, tmp_path / "run"), Control()))
    run = RunFolder(tmp_path / "run")
    newest = run.checkpoint_folders()[-1]
    file = newest / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    run.rewind(9)  # as if the run had been killed after its last step
    events = list(resume(Resume(run.path), Control()))
    assert "optimizer.safetensors is not what was written" in _of(Warned, events)[0].message
    assert _of(StepDone, events)[0].step == 7
    for folder in run.checkpoint_folders():
        (folder / "manifest.json").unlink()
    run.rewind(9)
    with pytest.raises(CoreError, match="No checkpoint of run is whole"):
        list(resume(Resume(run.path), Control()))


def test_a_full_disk_keeps_the_older_checkpoint_and_says_how_much_is_needed(
        tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tensor_file.save_file

    def full_at_step_6(tensors: dict, path: Path, metadata: dict | None = None) -> None:
        # as the library words it, see test_a_full_disk_is_an_error_of_the_system
        if "step-000006" in str(path):
            raise SafetensorError("Error while serializing: I/O error: No space left on device "
                                  f"(os error {errno.ENOSPC})")
        real(tensors, path, metadata)

    monkeypatch.setattr(tensor_file, "save_file", full_at_step_6)
    config = _config(tiny_model, data, checkpoint_every=3)
    with pytest.raises(CoreError, match=r"The disk is full: the checkpoint of step 6 needs about [\d,]+ bytes"):
        list(train(Train(config, tmp_path / "run"), Control()))
    run = RunFolder(tmp_path / "run")
    assert [folder.name for folder in run.checkpoint_folders()] == ["step-000003"]
    assert not list(run.checkpoints.glob(".*"))
    assert isinstance(list(run.read_events())[-1], Failed)
    monkeypatch.setattr(tensor_file, "save_file", real)
    assert list(resume(Resume(run.path), Control()))[-1].values["outcome"] == "finished"


def test_steps_without_a_finite_loss_are_left_out_and_then_end_the_run(
        tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.prepare

    def poisoned(*args, **values):
        setup = yield from real(*args, **values)
        return dataclasses.replace(setup, summed_loss=lambda model, batch: setup.summed_loss(model, batch) * torch.nan)

    monkeypatch.setattr(loop, "prepare", poisoned)
    stream = train(Train(_config(tiny_model, data, checkpoint_every=1), tmp_path / "run"), Control())
    with pytest.raises(CoreError, match="5 steps in a row"):
        list(stream)
    run = RunFolder(tmp_path / "run")
    assert len(_of(Warned, list(run.read_events()))) == 5
    for pair in read_adapter(run.checkpoint_folders()[-1]).pairs.values():
        assert torch.isfinite(pair.lora_a).all()
        assert not pair.lora_b.any()


def test_a_second_program_on_the_same_run_is_refused(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    stream = train(Train(_config(tiny_model, data), tmp_path / "run"), Control())
    next(event for event in stream if isinstance(event, StepDone))
    for other in (resume(Resume(tmp_path / "run"), Control()),
                  train(Train(_config(tiny_model, data), tmp_path / "run"), Control())):
        with pytest.raises(CoreError, match="by another program"):
            list(other)
    stream.close()
    with pytest.raises(CoreError, match="holds a run already"):
        list(train(Train(_config(tiny_model, data), tmp_path / "run"), Control()))


def test_a_run_that_failed_before_its_first_step_may_be_tried_again(
        tiny_model: Path, data: Path, tmp_path: Path) -> None:
    wrong = _config(tiny_model, data, {"target_modules": ["q_prj"]}, max_steps=2)
    with pytest.raises(CoreError, match="'q_prj' matches no module"):
        list(train(Train(wrong, tmp_path / "run"), Control()))
    assert not (tmp_path / "run").exists()
    events = list(train(Train(_config(tiny_model, data, max_steps=2), tmp_path / "run"), Control()))
    assert list(RunFolder(tmp_path / "run").read_events()) == events


def test_a_run_goes_on_only_as_it_began(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    control = Control()
    for event in train(Train(_config(model, data), tmp_path / "run"), control):
        if isinstance(event, StepDone):
            control.stop()
    run = RunFolder(tmp_path / "run")
    (run.checkpoints / ".step-000002.new.tmp").mkdir()  # as a kill in the middle of a checkpoint leaves it
    good = run.config()
    run.write_config(good.model_copy(update={"adapter": good.adapter.model_copy(update={"rank": 2})}))
    with pytest.raises(CoreError, match="another method, rank or other target layers"):
        list(resume(Resume(run.path), Control()))
    run.write_config(good)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(CoreError, match="is not the one that this run began with"):
        list(resume(Resume(run.path), Control()))
    shutil.copy(tiny_model / "model.safetensors", model)
    assert list(resume(Resume(run.path), Control()))[-1].values["outcome"] == "finished"
    assert not list(run.checkpoints.glob(".*"))


def test_problems_are_told_before_a_folder_is_made(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "pickle")
    for file in (tmp_path / "pickle").glob("*.safetensors"):
        file.rename(file.with_name("pytorch_model.bin"))
    for model, file in ((tmp_path / "nowhere", data), (tmp_path / "pickle", data), (tiny_model, tmp_path / "no.jsonl")):
        with pytest.raises(CoreError):
            list(train(Train(_config(model, file), tmp_path / "run"), Control()))
        assert not (tmp_path / "run").exists()


def test_schedule_rises_then_falls_to_zero() -> None:
    training = _config(Path("m"), Path("d"), warmup_steps=10, learning_rate=1.0).training
    rates = [learning_rate_at(step, 110, training) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 0.001
    assert total_steps(training, 41) == 22


def test_other_rows_than_those_a_run_began_with_are_refused(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    control = Control()
    for event in train(Train(_config(tiny_model, data), tmp_path / "run"), control):
        if isinstance(event, StepDone) and event.step == 3:
            control.stop()
    data.write_text(data.read_text().replace("pizzas", "lemons"))
    with pytest.raises(CoreError, match="training rows are not those"):
        list(resume(Resume(tmp_path / "run"), Control()))
