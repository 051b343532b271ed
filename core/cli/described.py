"""What `inspect` tells of a run folder and of an adapter."""

from pathlib import Path
from typing import Any

from core.runs.folder import RunFolder
from core.runs.history import summarise


def describe_run(run: RunFolder) -> dict[str, Any]:
    """Model, state, steps and losses of a run, from its folder alone.

    Raises:
        ConfigError: its run file can not be read.
    """
    config = run.config()
    summary = summarise(run)
    return {
        "kind": "run",
        "path": str(run.path),
        "state": summary.state,
        "problem": summary.problem,
        "model": config.model.path,
        "data": list(config.data.train),
        "method": summary.method,
        "rank": summary.rank,
        "alpha": summary.alpha,
        "steps": summary.steps_done,
        "total_steps": summary.steps_total,
        "loss": summary.last_loss,
        "validation_loss": summary.best_validation_loss,
        "seconds": summary.seconds,
        "trainable_parameters": summary.trainable_parameters,
        "bytes": summary.bytes,
        "checkpoints": [folder.name for folder in run.checkpoint_folders()],
        "adapter": str(run.adapter) if run.adapter.is_dir() else None,
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
