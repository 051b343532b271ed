"""A short real run: the starter model on the sample task, from the run file to an adapter that peft reads."""

from pathlib import Path

import pytest
import torch

from core.config import load_config, with_overrides
from core.control import Control
from core.events import Evaluated, Planned, StepDone
from core.jobs import Train
from core.paths import SAMPLE_RUN_FILE
from core.training.loop import train

pytestmark = pytest.mark.starter


def test_the_starter_learns_from_the_sample(starter_model: Path, tmp_path: Path) -> None:
    config = with_overrides(load_config(SAMPLE_RUN_FILE), [
        f'model.path="{starter_model}"', "training.max_steps=6", "training.warmup_steps=1", "training.batch_size=2",
        "training.device=cpu", "training.dtype=fp32", "data.validation_fraction=0.003"])
    events = list(train(Train(config, tmp_path / "run"), Control()))
    planned = next(event for event in events if isinstance(event, Planned))
    steps = [event for event in events if isinstance(event, StepDone)]
    assert planned.total_parameters == 134_515_008
    assert planned.packing
    assert sum(step.loss for step in steps[-2:]) < 0.7 * sum(step.loss for step in steps[:2])
    assert any(isinstance(event, Evaluated) for event in events)

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(starter_model, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    adapted = sum(item.numel() for name, item in tuned.named_parameters() if "lora_" in name)
    assert adapted == planned.trainable_parameters
