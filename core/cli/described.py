"""What `inspect` tells of a run folder and of an adapter."""

import dataclasses
from typing import Any

from core.records import AdapterCard
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
        "tuned_model": str(run.model) if run.model.is_dir() else None,
    }


def describe_adapter(card: AdapterCard) -> dict[str, Any]:
    """What is known of an adapter, by name, as the JSON and the text show it."""
    ranks = sorted({module.rank for module in card.modules})
    scales = sorted({module.scale for module in card.modules})
    shares = [module.share for module in card.modules if module.share is not None]
    return {
        "kind": "adapter",
        "path": str(card.path),
        "method": card.method,
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "scale": scales[0] if len(scales) == 1 else scales,
        "parameters": card.parameters,
        "dtype": card.dtype,
        "adapter_bytes": card.bytes,
        "base_model": card.base_name,
        "origin": card.origin,
        "bases_here": [dataclasses.asdict(match) for match in card.bases],
        "mean_share": sum(shares) / len(shares) if shares else None,
        "compared_with": card.base,
        "modules": [dataclasses.asdict(module) for module in card.modules],
        "loaders": [dataclasses.asdict(verdict) for verdict in card.loaders],
        "compatible_form": [dataclasses.asdict(verdict) for verdict in card.compatible],
        "goes_on": not card.unlike,
        "run_settings": card.settings,
        "why_not": card.unlike,
    }
