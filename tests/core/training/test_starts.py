"""Runs with other starts and DoRA from the run file to the export: resumed bit for bit, plain LoRA in the end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import build_tiny
from transformers import AutoModelForCausalLM

from core.config import parse_config
from core.control import Control
from core.estimate import estimate
from core.events import Finished, Note, Planned, ReceiptReady, StepDone
from core.export.export import export
from core.jobs import Export, Resume, Train
from core.lora.attach import load_adapter
from core.models.inspect import read_card
from core.models.load import load_model
from core.runs.folder import RunFolder
from core.training.loop import resume, train

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pissa": ("llama", {"method": "lora", "init": "pissa", "dropout": 0.1}),
    "olora with rsLoRA, LoRA+": ("qwen2", {"method": "lora", "init": "olora", "rslora": True, "lora_plus_ratio": 4.0}),
    "eva": ("llama", {"method": "lora", "init": "eva"}),
    "dora": ("gpt2", {"method": "dora", "dropout": 0.1}),
    "dora from pissa": ("gpt2", {"method": "dora", "init": "pissa"}),
}


@pytest.mark.parametrize("name", [
    name if name == "pissa" else pytest.param(name, marks=pytest.mark.full) for name in CASES])
def test_from_the_run_file_to_the_export(name: str, data: Path, tmp_path: Path) -> None:
    family, fields = CASES[name]
    base = build_tiny(family, tmp_path / "base")
    config = parse_config({
        "model": {"path": str(base)}, "adapter": {"rank": 4, "alpha": 8.0, **fields},
        "data": {"train": [str(data)], "validation_fraction": 0.1},
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 1, "device": "cpu",
                     "dtype": "fp32", "checkpoint_every": 3}})
    events = list(train(Train(config, tmp_path / "whole"), Control()))
    steps = [event for event in events if isinstance(event, StepDone)]
    assert steps[-1].loss < steps[0].loss
    planned = next(event for event in events if isinstance(event, Planned))
    estimated = estimate(config, read_card(base))
    assert planned.trainable_parameters == estimated.trainable_parameters
    weights = tmp_path / "whole" / "adapter" / "adapter_model.safetensors"
    assert weights.stat().st_size == estimated.adapter_bytes
    assert any("EVA" in event.message for event in events if isinstance(event, Note)) == (name == "eva")

    stream = train(Train(config, tmp_path / "cut"), Control())
    for event in stream:
        if isinstance(event, StepDone) and event.step == 5:
            break
    stream.close()  # type: ignore[attr-defined]
    run = RunFolder(tmp_path / "cut")
    with run.events_path.open() as lines:  # as a killed program leaves it
        kept = [line for line in lines if '"Finished"' not in line and '"Failed"' not in line]
    run.events_path.write_text("".join(kept))
    list(resume(Resume(run.path), Control()))
    assert any(isinstance(event, Finished) for event in run.read_events())
    cut = load_file(run.adapter / "adapter_model.safetensors")
    assert all(torch.equal(cut[key], tensor) for key, tensor in load_file(weights).items())
    _take_away(tmp_path / "whole", base, tmp_path / "merged", dora=fields["method"] == "dora")


def _take_away(run: Path, base: Path, out: Path, *, dora: bool) -> None:
    """The merged model, with its receipt, is the untouched base with the adapter of the run."""
    saved = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert saved["init_lora_weights"] is True and saved["use_dora"] is dora
    model = load_model(base, torch.device("cpu"), torch.float32)
    load_adapter(run / "adapter", model)
    receipts = [event.receipt for event in export(Export(run, "merged", out), Control())
                if isinstance(event, ReceiptReady)]
    assert receipts[0].passed, receipts[0].explanation
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(ids).logits
        torch.testing.assert_close(merged, model(ids).logits, rtol=0, atol=5e-5)
