"""Runs on parts of fused projections and on the experts of mixtures: counted, trained, resumed, asked."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_tiny, some_quick

from core.adapter_folder import WEIGHTS_NAME
from core.config import RunConfig, parse_config
from core.control import Control
from core.estimate import estimate
from core.events import Event, GenerationDone, Planned, StepDone
from core.jobs import Generate, Resume, Train
from core.models.inspect import read_card
from core.run_problems import advice, problems
from core.runs.folder import RunFolder
from core.training.generate import generate
from core.training.loop import resume, train

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "query and value of NeoX": ("gpt_neox", {"rank": 4, "fused_parts": ["q", "v"], "dropout": 0.1}),
    "query of GPT-2": ("gpt2", {"rank": 4, "fused_parts": ["q"], "target_modules": ["c_attn"], "rslora": True}),
    "Mixtral": ("mixtral", {"rank": 2}),
    "Qwen3-MoE, Gaussian": ("qwen3_moe", {"rank": 2, "init": "gaussian", "lora_plus_ratio": 4.0}),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"How many pizzas? {number}"},
                          {"role": "assistant", "content": f"I would like {number} pizzas."}]} for number in range(24)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def _config(model: Path, data: Path, adapter: dict[str, Any]) -> RunConfig:
    return parse_config({
        "model": {"path": str(model)}, "adapter": adapter,
        "data": {"train": [str(data)], "validation_fraction": 0.1},
        "training": {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 1, "device": "cpu",
                     "dtype": "fp32"}})


def _of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("case", some_quick(CASES, ["query and value of NeoX", "Mixtral"]))
def test_a_run_learns_and_goes_on_bit_for_bit(case: str, data: Path, tmp_path: Path) -> None:
    family, adapter = CASES[case]
    base = build_tiny(family, tmp_path / "base")
    config = _config(base, data, adapter)
    card = read_card(base)
    assert problems(config, card) == []
    events = list(train(Train(config, tmp_path / "whole"), Control()))
    steps = _of(StepDone, events)
    assert steps[-1].loss < steps[0].loss
    run = RunFolder(tmp_path / "whole")
    found = estimate(config, card)
    assert found.trainable_parameters == _of(Planned, events)[0].trainable_parameters
    assert found.adapter_bytes == (run.adapter / WEIGHTS_NAME).stat().st_size
    control = Control()
    for event in train(Train(config, tmp_path / "stopped"), control):
        if isinstance(event, StepDone) and event.step == 3:
            control.stop()
    list(resume(Resume(tmp_path / "stopped"), Control()))
    assert (run.adapter / WEIGHTS_NAME).read_bytes() == (
        RunFolder(tmp_path / "stopped").adapter / WEIGHTS_NAME).read_bytes()
    job = Generate(str(base), run.adapter, {"tuned": (("user", "How many pizzas? 3"),)}, max_new_tokens=4,
                   device="cpu", dtype="fp32")
    answers = list(generate(job, Control()))
    assert _of(GenerationDone, answers)


def test_problems_and_advice_stand_at_their_fields(data: Path, tmp_path: Path) -> None:
    phi, mixture, plain = (read_card(build_tiny(family, tmp_path / family)) for family in ("phi3", "mixtral", "llama"))

    def fields(found: list[Any]) -> list[str]:
        return [each.field for each in found if each.field.startswith("adapter.")]

    def config(**adapter: Any) -> RunConfig:
        return _config(tmp_path, data, adapter)

    assert fields(problems(config(method="dora", fused_parts=["q"]), phi)) == ["adapter.fused_parts"]
    assert fields(problems(config(rank=40, target_modules=["qkv_proj"], fused_parts=["k"]), phi)) == ["adapter.rank"]
    assert fields(advice(config(fused_parts=["q"]), plain)) == ["adapter.fused_parts"]
    assert "no effect" in advice(config(fused_parts=["q"]), plain)[0].message
    assert fields(advice(config(target_modules="q-v"), phi)) == ["adapter.fused_parts"]
    assert fields(problems(config(dropout=0.1), mixture)) == ["adapter.dropout"]
    assert fields(problems(config(init="pissa"), mixture)) == ["adapter.init"]
    assert fields(problems(config(method="dora", target_modules=["experts.down_proj"]), mixture)) == [
        "adapter.target_modules"]
    assert fields(advice(config(method="dora"), mixture)) == ["adapter.target_modules"]
    for adapter in ({}, {"rank": 8, "target_modules": ["gate_up_proj", "q_proj"]}):
        assert fields(problems(config(**adapter), mixture)) == []
        assert fields(advice(config(**adapter), mixture)) == []
