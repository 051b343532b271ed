"""What a run leaves when it ends: its best adapter or model, and how that compares with its start."""

from collections.abc import Iterator
from pathlib import Path

from core import files
from core.config import StartableConfig
from core.errors import CoreError
from core.events import Warned
from core.lora.adapter_file import ORIGIN_NAME, copy_adapter
from core.lora.full import Full, load_values
from core.models.save import save_model
from core.runs.folder import RunFolder
from core.training.checkpoint import OPTIMIZER_NAME, Position
from core.training.setup import Setup


def keep_final(run: RunFolder, setup: Setup, step: int) -> Path:
    """Write the adapter, or the model, of the checkpoint of `step` as what the run leaves; returns its folder.

    After full fine-tuning the model in memory is that of `step`.

    Raises:
        CoreError: the numbers do not fit the type to save in, or the disk is full.
    """
    checkpoint = run.checkpoint(step)
    dtype = setup.config.adapter.save_dtype
    if not is_whole(setup):
        copy_adapter(checkpoint, run.adapter, dtype)
        return run.adapter
    load_values(checkpoint / OPTIMIZER_NAME, setup.model)
    with files.replaced_folder(run.model) as folder:
        save_model(setup.model, setup.model_path, folder, dtype)
        files.write_text(folder / ORIGIN_NAME, (checkpoint / ORIGIN_NAME).read_text(encoding="utf-8"))
    return run.model


def compared_with_start(setup: Setup, position: Position) -> Iterator[Warned]:
    """Warn where the adapter that the run started from is better than all that came of it."""
    adapter, first, best = setup.config.adapter, position.first_loss, position.best_loss
    if isinstance(adapter, StartableConfig) and adapter.start_from and first is not None and best is not None \
            and first < best:
        yield Warned(f"The adapter that this run started from has a lower validation loss ({first:.4f}) than the best "
                     f"of the run ({best:.4f}).", "Keep using that one, or try a lower learning rate.")


def is_whole(setup: Setup) -> bool:
    """True where the run trains the model's own weights."""
    return any(isinstance(method, Full) for method in setup.adaptation.methods)


def require_space(run: RunFolder, setup: Setup) -> None:
    """Refuse full fine-tuning before its first step where the disk can not hold what it will write.

    Raises:
        CoreError: says how much is needed.
    """
    if not is_whole(setup):
        return
    held = setup.config.training.keep_checkpoints + 2  # the best one besides, and the one that is being written
    model_bytes = sum(parameter.numel() for parameter in setup.model.parameters()) * 4
    there = sum(path.stat().st_size for folder in run.checkpoint_folders() for path in folder.iterdir())
    needed = held * 3 * setup.adapter_bytes + model_bytes - there
    free = files.free_bytes(run.path)
    if free < needed:
        raise CoreError(f"The run needs up to {needed:,} bytes for its checkpoints and its model, but only {free:,} "
                        "are free on this disk.", "Free some space, keep fewer checkpoints, or train with LoRA.")
