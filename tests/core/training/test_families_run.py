"""Every family that is promised learns in a whole run with LoRA, from the run file to the adapter."""

import json
from pathlib import Path

import pytest
from tiny_models import FAMILIES, build_tiny

from core.config import RunConfig, parse_config, with_overrides
from core.control import Control
from core.errors import ConfigError
from core.events import Result, StepDone
from core.jobs import Train
from core.lora.adapter_file import read_adapter
from core.training.loop import train


def config_of(family: str, tmp_path: Path, answer: str = "one two three", **adapter: object) -> RunConfig:
    model = build_tiny(family, tmp_path / "model")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Count to {number}.", "completion": answer}) + "\n"
                            for number in range(16)))
    return parse_config({
        "model": {"path": str(model)}, "adapter": {"rank": 4} | adapter,
        "data": {"train": [str(data)], "validation_fraction": 0.0, "max_length": 4096},
        "training": {"max_steps": 12, "batch_size": 4, "learning_rate": 0.02, "warmup_steps": 1, "device": "cpu",
                     "dtype": "fp32"}})


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns(family: str, tmp_path: Path) -> None:
    config = config_of(family, tmp_path)
    events = list(train(Train(config, tmp_path / "run"), Control()))
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    assert isinstance(events[-1], Result)
    assert losses[-1] < 0.8 * losses[0]
    assert any(float(pair.lora_b.abs().max()) > 0 for pair in read_adapter(tmp_path / "run" / "adapter").pairs.values())


def test_a_row_beyond_the_position_table_is_refused_in_a_sentence(tmp_path: Path) -> None:
    config = config_of("gpt2", tmp_path, answer="one two three " * 400)
    with pytest.raises(ConfigError, match=r"data\.max_length: This model can not read more than"):
        list(train(Train(config, tmp_path / "run"), Control()))
    assert not (tmp_path / "run").exists()


def test_what_the_form_would_refuse_is_refused_without_a_form(tmp_path: Path) -> None:
    config = config_of("llama", tmp_path, rank=500)
    with pytest.raises(ConfigError, match=r"adapter\.rank: .* only .* wide") as caught:
        list(train(Train(config, tmp_path / "run"), Control()))
    assert "adapter.rank" in caught.value.details


def test_a_held_out_row_counts_as_well(tmp_path: Path) -> None:
    config = config_of("gpt2", tmp_path)
    with open(config.data.train[0], "a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "Count.", "completion": "one two three " * 400}) + "\n")
    for seed in range(4):  # among the rows to train on with some, held out with others
        split = with_overrides(config, ["data.validation_fraction=0.5", f"training.seed={seed}"])
        with pytest.raises(ConfigError, match=r"data\.max_length"):
            list(train(Train(split, tmp_path / f"run {seed}"), Control()))
