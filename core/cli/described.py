"""What `inspect` tells of a run folder and of an adapter."""

from pathlib import Path
from typing import Any

from core.events import Evaluated, Finished, Planned, StepDone
from core.runs.folder import RunFolder


def describe_run(run: RunFolder) -> dict[str, Any]:
    """Model, state, steps and losses of a run, from its folder alone."""
    config = run.config()
    planned, last, best, finished = None, None, None, None
    seconds = 0.0
    for event in run.read_events():
        match event:
            case Planned():
                planned = event
            case StepDone():
                last, seconds = event, seconds + event.seconds
            case Evaluated(best=True):
                best = event
            case Finished():
                finished = event
    return {
        "kind": "run",
        "path": str(run.path),
        "state": run.state(),
        "model": config.model.path,
        "data": list(config.data.train),
        "steps": last.step if last else 0,
        "total_steps": planned.total_steps if planned else 0,
        "loss": last.loss if last else None,
        "validation_loss": best.loss if best else None,
        "best_step": best.step if best else None,
        "step_seconds": round(seconds, 3),
        "trainable_parameters": planned.trainable_parameters if planned else None,
        "checkpoints": [folder.name for folder in run.checkpoint_folders()],
        "adapter": str(finished.path) if finished else None,
    }


def describe_adapter(folder: Path) -> dict[str, Any]:
    """Rank, targets and size of an adapter, after it was validated.

    Raises:
        AdapterError: it is damaged or of a kind that can not be used.
    """
    from core.lora.adapter_file import WEIGHTS_NAME, read_adapter  # noqa: PLC0415 - needs torch

    adapter = read_adapter(folder)
    ranks = sorted({pair.lora_a.shape[0] for pair in adapter.pairs.values()})
    return {
        "kind": "adapter",
        "path": str(folder),
        "base_model": adapter.config.get("base_model_name_or_path"),
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "alpha": adapter.config.get("lora_alpha"),
        "modules": len(adapter.pairs),
        "target_modules": adapter.config.get("target_modules"),
        "parameters": sum(pair.lora_a.numel() + pair.lora_b.numel() for pair in adapter.pairs.values()),
        "dtype": str(next(iter(adapter.pairs.values())).lora_a.dtype).removeprefix("torch."),
        "adapter_bytes": (folder / WEIGHTS_NAME).stat().st_size,
    }
