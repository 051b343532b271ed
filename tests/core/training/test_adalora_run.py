"""AdaLoRA in the training loop: ranks move, a killed run goes on bit for bit, only pruned adapters can be the best."""

from pathlib import Path

import pytest
import torch

from core.config import RunConfig, parse_config
from core.control import Control
from core.errors import AdapterError
from core.events import CheckpointSaved, Evaluated, Event, RanksChosen, Result, StepDone
from core.jobs import Export, Generate, Resume, Train
from core.lora.adapter_file import read_adapter
from core.runs.folder import RunFolder
from core.training.generate import generate
from core.training.loop import resume, train

END = 13  # of 18 steps, 0.7 of them


def _config(model: Path, data: Path, adapter: dict | None = None, **training: object) -> RunConfig:
    training = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "device": "cpu",
                "dtype": "fp32"} | training
    adapter = {"method": "adalora", "rank": 2, "budget_every": 2} | (adapter or {})
    return parse_config({"model": {"path": str(model)}, "adapter": adapter, "training": training,
                         "data": {"train": [str(data)], "validation_fraction": 0.1}})


def _of(kind: type, events: list[Event]) -> list:
    return [event for event in events if isinstance(event, kind)]


def test_ranks_move_to_the_target_and_the_best_is_a_pruned_one(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, evaluate_every=2)
    events = list(train(Train(config, tmp_path / "run"), Control()))
    steps, chosen = _of(StepDone, events), _of(RanksChosen, events)
    assert steps[-1].loss < 0.85 * steps[0].loss
    assert chosen[0].step == 0 and set(chosen[0].ranks.values()) == {3}
    assert chosen[-1].step == END and sum(chosen[-1].ranks.values()) == 2 * len(chosen[-1].ranks)
    assert {event.step for event in chosen[1:-1]} <= {4, 6, 8, 10, 12}
    assert [event.budget for event in chosen] == sorted((event.budget for event in chosen), reverse=True)
    assert all(event.step >= END for event in _of(Evaluated, events) if event.best)
    assert isinstance(events[-1], Result) and events[-1].values["adapter_step"] >= END
    ranks = {name: pair.lora_a.shape[0] for name, pair in read_adapter(tmp_path / "run" / "adapter").pairs.items()}
    assert ranks == chosen[-1].ranks
    assert list(RunFolder(tmp_path / "run").read_events()) == events


# while ranks are chosen, and after
@pytest.mark.parametrize("killed_at", [7, pytest.param(17, marks=pytest.mark.full)])
def test_a_killed_run_goes_on_to_the_same_adapter_bit_for_bit(tiny_model: Path, data: Path, tmp_path: Path,
                                                              killed_at: int) -> None:
    config = _config(tiny_model, data, {"dropout": 0.2}, checkpoint_every=5, evaluate_every=0)
    whole = list(train(Train(config, tmp_path / "whole"), Control()))
    run = RunFolder(tmp_path / "killed")
    stream = train(Train(config, run.path), Control())
    for event in stream:
        if isinstance(event, StepDone) and event.step == killed_at:
            break
    log = run.events_path.read_bytes()
    stream.close()  # type: ignore[attr-defined]
    run.events_path.write_bytes(log + b'{"event": "Step')  # as a dead process leaves it
    events = list(resume(Resume(run.path), Control()))
    assert _of(StepDone, events)[0].step == {7: 6, 17: 16}[killed_at]
    assert _of(RanksChosen, list(run.read_events())) == _of(RanksChosen, whole)  # none is lost, none is told twice
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (run.adapter / name).read_bytes() == (tmp_path / "whole" / "adapter" / name).read_bytes()


def test_a_run_that_is_stopped_before_the_end_of_pruning_keeps_what_it_has(tiny_model: Path, data: Path,
                                                                          tmp_path: Path) -> None:
    control, seen = Control(), []
    for event in train(Train(_config(tiny_model, data), tmp_path / "run"), control):
        seen.append(event)
        if isinstance(event, StepDone) and event.step == 8:
            control.stop()
    assert _of(CheckpointSaved, seen)[-1].step == 8
    assert read_adapter(tmp_path / "run" / "adapter").pairs
    events = list(resume(Resume(tmp_path / "run"), Control()))
    assert _of(RanksChosen, events)[-1].step == END


def test_a_run_too_short_to_choose_ranks_is_refused_and_leaves_no_folder(tiny_model: Path, data: Path,
                                                                         tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="A run of 1 step leaves none"):
        list(train(Train(_config(tiny_model, data, max_steps=1), tmp_path / "run"), Control()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("to", "form"), [
    pytest.param("adapter", "peft", marks=pytest.mark.full), ("adapter", "compatible"),
    pytest.param("merged", "peft", marks=pytest.mark.full)])
@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.full)])
def test_the_result_is_exported_and_chats(tiny_model: Path, data: Path, tmp_path: Path, to: str, form: str,
                                          dtype: str) -> None:
    from core.export.export import export

    config = _config(tiny_model, data, {"rank": 1, "initial_rank": 4})
    events = list(train(Train(config, tmp_path / "run"), Control()))
    assert 0 in _of(RanksChosen, events)[-1].ranks.values()
    job = Export(tmp_path / "run", to, tmp_path / "out", dtype=dtype, form=form)  # type: ignore[arg-type]
    result = list(export(job, Control()))[-1]
    assert isinstance(result, Result)
    assert result.values["passed"], result.values["explanation"]
    if to == "adapter":
        question = {"tuned": (("user", "How many pizzas? 3"),)}
        answer = list(generate(Generate(str(tiny_model), tmp_path / "out", question, max_new_tokens=4, device="cpu"),
                               Control()))[-1]
        assert isinstance(answer, Result) and answer.values["tokens"]["tuned"] > 0


@pytest.mark.full
def test_the_same_seed_gives_the_same_run(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        list(train(Train(_config(tiny_model, data), tmp_path / name), Control()))
        files.append((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]


@pytest.mark.full
def test_a_half_in_sixteen_bit_is_read(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    list(train(Train(_config(tiny_model, data, {"save_dtype": "bf16"}), tmp_path / "run"), Control()))
    pair = next(iter(read_adapter(tmp_path / "run" / "adapter").pairs.values()))
    assert pair.lora_b.dtype == torch.bfloat16
