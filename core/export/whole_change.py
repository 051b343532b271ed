"""How much of what full fine-tuning changed arrives in the files of an export."""

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from core.control import Control
from core.events import Event, Progress
from core.export.merge import DeltaError
from core.export.shards import FLOATING, TensorReader, read_checkpoint, row_blocks
from core.records import Receipt


def change_that_arrived(base: Path, tuned: Path, written: Path, control: Control) -> Generator[Event, None, DeltaError]:
    """||written - tuned|| / ||tuned - base|| over all tensors that the three folders share, block by block."""
    report = DeltaError()
    files = [read_checkpoint(folder).tensors for folder in (base, tuned, written)]
    names = [name for name, record in files[1].items() if record.dtype in FLOATING and record.elements
             and all(name in tensors and tensors[name].shape == record.shape for tensors in files)]
    with TensorReader() as first, TensorReader() as second, TensorReader() as third:
        readers = (first, second, third)
        for done, name in enumerate(names):
            yield Progress("Measuring what arrived", done, len(names), "tensors")
            error_square = delta_square = 0.0
            rows = files[1][name].rows
            for start, stop in row_blocks(rows, files[1][name].elements // rows):
                control.check()
                old, new, found = (reader.rows(tensors[name], start, stop).double()
                                   for reader, tensors in zip(readers, files, strict=True))
                error_square += _square(found - new)
                delta_square += _square(new - old)
            if delta_square > 0:  # a module that was not trained has no change that could be lost
                report.add(name, error_square, delta_square)
    return report


def with_loss(receipt: Receipt, arrived: DeltaError) -> Receipt:
    """The receipt with what rounding lost of the change."""
    words = (f"Rounding to {receipt.dtype} changes what was learned by {arrived.overall:.2%} (most in "
             f"{arrived.worst}: {arrived.worst_error:.2%}); fp32 files would keep it whole.")
    return replace(receipt, realised_delta_error=arrived.overall, explanation=f"{receipt.explanation} {words}")


def _square(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2
