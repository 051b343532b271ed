"""A finished run beside a tiny base model, made without training; and exports of it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from core.config import DoraConfig, LoraConfig, ModelConfig, RunConfig
from core.control import Control
from core.events import Event, ReceiptReady, Result
from core.export.export import export
from core.jobs import Export
from core.lora.adapter_file import save_adapter
from core.lora.dora import DoraLayer
from core.lora.inject import inject, lora_layers
from core.lora.layers import LoraLayer
from core.models.inspect import read_card
from core.models.load import load_model
from core.records import Receipt
from core.runs.folder import RunFolder


@dataclass(frozen=True)
class Made:
    """A run and its base."""

    run: RunFolder
    base: Path


def build_run(folder: Path, base: Path, targets: str = "all-linear", strength: float = 0.05,
              save_dtype: str = "fp32", method: type[LoraConfig] | type[DoraConfig] = LoraConfig) -> Made:
    """A run folder whose adapter has a random B (and magnitude), as if it had been trained."""
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    adapter = method(rank=4, alpha=8.0, target_modules=targets, save_dtype=save_dtype)  # type: ignore[arg-type]
    run.write_config(RunConfig(model=ModelConfig(path=str(base)), adapter=adapter))
    model = load_model(base, torch.device("cpu"), torch.float32)
    inject(model, adapter, seed=0, kind=DoraLayer if method is DoraConfig else LoraLayer)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        layer.lora_b.data.normal_(0, strength, generator=generator)
        if isinstance(layer, DoraLayer):
            layer.magnitude.data.mul_(1 + 0.1 * torch.randn(layer.out_features, generator=generator))
    card = read_card(base)
    save_adapter(run.adapter, model, adapter, str(base),
                 {"base_fingerprint": card.fingerprint, "base_name": card.name, "base_path": str(base)})
    return Made(run, base)


def run_export(job: Export, control: Control | None = None) -> tuple[dict[str, object], Receipt | None, list[Event]]:
    """The values of the Result, the receipt and all events."""
    events = list(export(job, control or Control()))
    assert isinstance(events[-1], Result)
    receipts = [event.receipt for event in events if isinstance(event, ReceiptReady)]
    return events[-1].values, receipts[0] if receipts else None, events

