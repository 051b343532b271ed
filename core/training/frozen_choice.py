"""Whether a run keeps the output of its frozen layers: where that is exact, pays, and fits on the disk."""

import contextlib
import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from core import files, words
from core.data.batching import Batch, epoch_order, step_rows
from core.data.row_store import row_indices, row_lengths
from core.events import Event, Note
from core.training.computing_path import probe_rows
from core.training.frozen_cache import FrozenCache, RowStore
from core.training.frozen_part import FrozenPart, find_frozen_part
from core.training.schedule import steps_per_epoch, total_steps
from core.training.segments import segmented_attention
from core.training.setup import Setup

# A byte is read from a slow disk (0.5 GB/s) while about so many operations are done. It pays where the layers
# need more of them for each byte of their output.
_OPERATIONS_PER_BYTE = {"cpu": 4_000, "mps": 20_000, "cuda": 600_000}
_LEAST_SHARE = 0.05  # of a step's time that must be saved
_LARGEST_SHARE_OF_DISK = 0.5  # of what is free
_RESERVE_BYTES = 100_000_000  # left to others in any case


def choose_frozen(setup: Setup, folder: Path) -> Generator[Event, None, tuple[Setup, FrozenCache | None]]:
    """The setup that trains with a cache in `folder` where it should have one.

    In its config the choice is resolved, so that a resumed run computes alike; where there is nothing to choose, as
    no layer is frozen or no row is seen twice, it stays as it was.
    """
    training = setup.config.training
    if training.frozen_cache == "off":
        return setup, None
    asked = training.frozen_cache == "on"
    part, reason = find_frozen_part(setup.model)
    if part is not None and setup.ranks.several:  # in another epoch a row is most often with another one
        part, reason = None, "several processes share the rows"
    if part is not None and _epochs(setup) <= 1:
        part, reason = None, "no row is seen twice"
    if part is None:
        if asked:
            yield Note(f"The frozen-layer cache is not used, as {reason}.")
        return setup, None
    needed = _needed_bytes(part, setup)
    reason = _why_not(part, setup, needed, files.free_bytes(folder), asked)
    if reason:
        yield Note(f"The output of the frozen layers is computed anew in every epoch, as {reason}.")
        return _resolved(setup, "off"), None
    yield Note(f"The output of the {words.plural(part.depth, 'frozen layer')} is kept on the disk (up to "
               f"{words.size(needed)}) and not computed again from the second epoch on.")
    cache = _cache(part, setup, folder)
    return replace(_resolved(setup, "on"), summed_loss=cache.loss, shares_prefix=False), cache


def _resolved(setup: Setup, choice: str) -> Setup:
    training = setup.config.training.model_copy(update={"frozen_cache": choice})
    return replace(setup, config=setup.config.model_copy(update={"training": training}))


def _why_not(part: FrozenPart, setup: Setup, needed: int, free: int, asked: bool) -> str:
    """What speaks against a cache of `needed` bytes; "" where nothing does. What is asked for need not pay."""
    if not asked and not pays(part, setup.device.type):
        return "reading it from the disk would save little or nothing"
    if needed > _LARGEST_SHARE_OF_DISK * free:
        return f"it needs {words.size(needed)}, more than half of the {words.size(free)} that are free on this disk"
    if not _is_exact(part, setup):
        return "this model can not be started in the middle"
    return ""


def pays(part: FrozenPart, device: str) -> bool:
    """True where computing the frozen part takes clearly longer than reading what it gives, and is worth the disk."""
    bytes_per_token = part.width * part.dtype.itemsize
    worth = 2 * part.parameters / bytes_per_token >= _OPERATIONS_PER_BYTE.get(device, _OPERATIONS_PER_BYTE["cuda"])
    # a trained layer costs its forward pass and about twice as much for its backward pass
    return worth and part.depth / (part.depth + 3 * part.trained_layers) >= _LEAST_SHARE


def _epochs(setup: Setup) -> float:
    training = setup.config.training
    return total_steps(training, len(setup.train)) / steps_per_epoch(training, len(setup.train))


def _needed_bytes(part: FrozenPart, setup: Setup) -> int:
    tokens = sum(int(row_lengths(rows).sum()) for rows in (setup.train, setup.validation))
    return tokens * part.width * part.dtype.itemsize


def _cache(part: FrozenPart, setup: Setup, folder: Path) -> FrozenCache:
    training, rows = setup.config.training, len(setup.train)
    per_step = training.batch_size * training.gradient_accumulation
    indices = row_indices(setup.train)
    count = int(max(indices.max(), row_indices(setup.validation).max(initial=0))) + 1
    first_steps = np.full(count, -1, np.int64)
    first_steps[indices[epoch_order(rows, training.seed, 0)]] = np.arange(rows) // per_step

    def batches_of(step: int) -> list[Batch]:
        chosen = [setup.train[index] for index in step_rows(step, rows, per_step, training.seed)]
        return setup.ranks.batches(chosen, training.batch_size, setup.batches)

    # room for the checkpoint that is written beside the older ones
    store = RowStore(folder, count, _RESERVE_BYTES + 4 * setup.adapter_bytes)
    return FrozenCache(part, setup.summed_loss, store, first_steps, batches_of)


def _is_exact(part: FrozenPart, setup: Setup) -> bool:
    """Run a few short rows as a whole, and in two parts; the sums of the losses must agree."""
    packed = setup.config.training.packing == "on"
    setup.model.eval()  # the added modules, too: nothing may be drawn at random here
    tolerance = 1e-5 if setup.model.dtype == torch.float32 else 1e-2
    with torch.no_grad(), segmented_attention(setup.model) if packed else contextlib.nullcontext():
        for batch in (item.to(setup.device) for item in setup.batches(probe_rows(setup.train))):
            whole = float(setup.summed_loss(setup.model, batch))
            parted = _in_two_parts(part, setup, batch)
            if not abs(parted - whole) <= tolerance * max(1.0, abs(whole)):
                return False
    return True


def _in_two_parts(part: FrozenPart, setup: Setup, batch: Batch) -> float:
    """The summed loss, NaN in a family whose layers are put together in another way."""
    try:
        states = part.states(batch)
        if batch.attention_mask is not None:
            states = states * batch.attention_mask[..., None].to(states.dtype)  # as they are kept
        with part.given(states):
            return float(setup.summed_loss(setup.model, batch))
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, AssertionError, AttributeError, TypeError, LookupError, ValueError, RuntimeError):
        return math.nan
