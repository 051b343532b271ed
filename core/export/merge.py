"""Base + adapter, tensor by tensor, shard by shard, in blocks of rows.

The memory is that of a few blocks, whatever the size of the model. What the adapter changes is
computed in fp64 and rounded once to fp32, so the result does not depend on how rows are cut.
"""

import json
import math
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from core import files
from core.control import Control
from core.errors import ModelError
from core.events import Event, Progress
from core.export.change import changed_rows, output_norms, source_rows
from core.export.plan import MergePlan, PlannedTensor
from core.export.shards import (
    BLOCK_BYTES,
    INDEX_NAME,
    TORCH_DTYPES,
    Checkpoint,
    ShardWriter,
    TensorReader,
    row_blocks,
    write_shard,
)


@dataclass
class DeltaError:
    """How much of the weight change arrived: ||(W' - W) - D|| / ||D|| over all and for the worst tensor."""

    error_square: float = 0.0
    delta_square: float = 0.0
    worst: str = ""
    worst_error: float = 0.0
    damaged: list[str] = field(default_factory=list)  # tensors in the files that are not what they should be

    @property
    def overall(self) -> float:
        """The relative error over all adapted tensors."""
        return _relative(self.error_square, self.delta_square)

    def add(self, name: str, error_square: float, delta_square: float) -> None:
        """Count one adapted tensor."""
        self.error_square += error_square
        self.delta_square += delta_square
        error = _relative(error_square, delta_square)
        if not self.worst or error > self.worst_error:
            self.worst, self.worst_error = name, error


def _relative(error_square: float, delta_square: float) -> float:
    """A change of exactly zero has nothing that could be lost."""
    return math.sqrt(error_square / delta_square) if delta_square > 0 else 0.0


def write_merged(plan: MergePlan, folder: Path, control: Control) -> Generator[Event, None, None]:
    """Write every shard of the plan and its index into `folder`, which exists.

    Raises:
        ModelError: a number does not fit the written type or is not finite.
        Cancelled: asked to stop; the caller removes the folder.
    """
    total = len(plan.tensors)
    done = 0
    with TensorReader() as reader:
        for shard in plan.shards:
            specs = [tensor.spec for tensor in shard.tensors]
            with write_shard(folder / shard.name, specs, shard.metadata) as writer:
                for tensor in shard.tensors:
                    yield Progress("Merging", done, total, "tensors")
                    _write_tensor(tensor, reader, writer, control)
                    done += 1
    if plan.index is not None:
        files.write_text(folder / INDEX_NAME, json.dumps(plan.index, indent=2) + "\n")
    yield Progress("Merging", total, total, "tensors")


def _write_tensor(tensor: PlannedTensor, reader: TensorReader, writer: ShardWriter, control: Control) -> None:
    if not tensor.change and tensor.spec.dtype == tensor.source.dtype:
        for start in range(0, tensor.source.nbytes, BLOCK_BYTES):
            control.check()
            writer.write(reader.raw(tensor.source, start, min(BLOCK_BYTES, tensor.source.nbytes - start)))
        return
    norm = output_norms(tensor, _blocks(tensor), reader, control)
    for start, stop in _blocks(tensor):
        control.check()
        writer.write(expected_rows(tensor, source_rows(tensor, reader, start, stop), start, stop, norm))


def _blocks(tensor: PlannedTensor) -> list[tuple[int, int]]:
    shape = tensor.spec.shape
    return list(row_blocks(shape[0] if shape else 1, math.prod(shape[1:])))


def expected_rows(tensor: PlannedTensor, weight: Tensor, start: int, stop: int, norm: Tensor | None = None) -> Tensor:
    """What the file must hold for rows `start` to `stop`, given the base's rows.

    `norm` are the tensor's `output_norms`, where the rows are not all.

    Raises:
        ModelError: a number does not fit the written type or is not finite.
    """
    return _rows_and_delta(tensor, weight, start, stop, norm)[0]


def _rows_and_delta(tensor: PlannedTensor, weight: Tensor, start: int, stop: int,
                    norm: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The rows of the file, and the change that they should hold; None where there is none."""
    if tensor.change:
        merged, delta = changed_rows(tensor, weight, start, stop, norm)
        return _written(tensor, merged), delta
    return _unchanged(tensor, weight), None


def _unchanged(tensor: PlannedTensor, weight: Tensor) -> Tensor:
    if tensor.spec.dtype == tensor.source.dtype:
        return weight
    written = weight.to(TORCH_DTYPES[tensor.spec.dtype])
    if not torch.equal(torch.isfinite(written), torch.isfinite(weight)):
        raise _does_not_fit(tensor)
    return written


def _written(tensor: PlannedTensor, merged: Tensor) -> Tensor:
    if not torch.isfinite(merged).all():
        raise ModelError(f"Merging gives numbers that are not finite in {tensor.spec.name}.",
                         "The adapter or the base model is damaged; try an earlier checkpoint.")
    written = merged.to(TORCH_DTYPES[tensor.spec.dtype])
    if not torch.isfinite(written).all():
        raise _does_not_fit(tensor)
    return written


def _does_not_fit(tensor: PlannedTensor) -> ModelError:
    return ModelError(f"{tensor.spec.name} holds numbers too large for {tensor.spec.dtype}; nothing was written.",
                      "Choose bf16 or fp32 instead.")


def verify_merged(plan: MergePlan, written: Checkpoint, control: Control) -> Generator[Event, None, DeltaError]:
    """Read every tensor again from the disk and compare it, bit for bit, with what it must be.

    Returns the error of the realised weight change and the names of tensors that differ.
    """
    report = DeltaError()
    records = written.tensors
    tensors = plan.tensors
    names = {tensor.spec.name for tensor in tensors}
    report.damaged += sorted(set(records) - names)
    with TensorReader() as base_reader, TensorReader() as reader:
        for done, tensor in enumerate(tensors):
            yield Progress("Checking the written weights", done, len(tensors), "tensors")
            record = records.get(tensor.spec.name)
            if record is None or (record.dtype, record.shape) != (tensor.spec.dtype, tensor.spec.shape):
                report.damaged.append(tensor.spec.name)
                continue
            same, error_square, delta_square = True, 0.0, 0.0
            norm = output_norms(tensor, _blocks(tensor), base_reader, control)
            for start, stop in _blocks(tensor):
                control.check()
                base = source_rows(tensor, base_reader, start, stop)
                found = reader.rows(record, start, stop)
                wanted, delta = _rows_and_delta(tensor, base, start, stop, norm)
                same = same and _same_bits(found, wanted)
                if delta is not None:
                    error_square += _square_norm(found.float() - base.float() - delta)
                    delta_square += _square_norm(delta)
            if not same:
                report.damaged.append(tensor.spec.name)
            if tensor.change:
                report.add(tensor.spec.name, error_square, delta_square)
    yield Progress("Checking the written weights", len(tensors), len(tensors), "tensors")
    return report


def _square_norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _same_bits(left: Tensor, right: Tensor) -> bool:
    left, right = left.contiguous().reshape(-1), right.contiguous().reshape(-1)
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


