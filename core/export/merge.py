"""Base + adapter, tensor by tensor, shard by shard, in blocks of rows.

The memory is that of a few blocks, whatever the size of the model. What the adapter changes is computed in fp64 and
rounded once to fp32, so the result does not depend on how rows are cut; in fp32 where a weight of 16 bits stays one.
"""

import json
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from core import files
from core.control import Control
from core.errors import ModelError
from core.events import Event, Progress
from core.export.change import changed_rows, merged_rows, output_norms, source_rows
from core.export.plan import MergePlan, PlannedTensor
from core.export.shards import (
    BLOCK_BYTES,
    INDEX_NAME,
    TORCH_DTYPES,
    Checkpoint,
    TensorReader,
    TensorRecord,
    row_blocks,
    write_shard,
)
from core.export.workers import Workers


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
    with Workers() as workers:
        for shard in plan.shards:
            specs = [tensor.spec for tensor in shard.tensors]
            with write_shard(folder / shard.name, specs, shard.metadata) as writer:
                for tensor in shard.tensors:
                    yield Progress("Merging", done, total, "tensors")
                    for piece in _pieces(tensor, workers, control):
                        workers.written(writer.file, writer.write(piece))
                    done += 1
                workers.wait()
    if plan.index is not None:
        files.write_text(folder / INDEX_NAME, json.dumps(plan.index, indent=2) + "\n")
    yield Progress("Merging", total, total, "tensors")


def _pieces(tensor: PlannedTensor, workers: Workers, control: Control) -> Iterator[Tensor | bytearray]:
    """The bytes of a tensor in the order of the file."""
    if not tensor.change and tensor.spec.dtype == tensor.source.dtype:
        total = tensor.source.nbytes
        blocks = [(start, min(start + BLOCK_BYTES, total)) for start in range(0, total, BLOCK_BYTES)]
        yield from workers.each(lambda reader, start, stop: reader.raw(tensor.source, start, stop - start), blocks,
                                control)
        return
    norm = _norms(tensor, control)
    yield from workers.each(lambda reader, start, stop: expected_rows(
        tensor, source_rows(tensor, reader, start, stop), start, stop, norm), _blocks(tensor), control)


def _norms(tensor: PlannedTensor, control: Control) -> Tensor | None:
    with TensorReader() as reader:
        return output_norms(tensor, _blocks(tensor), reader, control)


def _blocks(tensor: PlannedTensor) -> list[tuple[int, int]]:
    shape = tensor.spec.shape
    return list(row_blocks(shape[0] if shape else 1, math.prod(shape[1:])))


def expected_rows(tensor: PlannedTensor, weight: Tensor, start: int, stop: int, norm: Tensor | None = None) -> Tensor:
    """What the file must hold for rows `start` to `stop`, given the base's rows.

    `norm` are the tensor's `output_norms`, where the rows are not all.

    Raises:
        ModelError: a number does not fit the written type or is not finite.
    """
    if tensor.change:
        return _written(tensor, merged_rows(tensor, weight, start, stop, norm))
    return _unchanged(tensor, weight)


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
    if not _all_finite(written) and not torch.equal(torch.isfinite(written), torch.isfinite(weight)):
        raise _does_not_fit(tensor)
    return written


def _written(tensor: PlannedTensor, merged: Tensor) -> Tensor:
    written = merged.to(TORCH_DTYPES[tensor.spec.dtype])
    if _all_finite(written):
        return written
    if _all_finite(merged):
        raise _does_not_fit(tensor)
    raise ModelError(f"Merging gives numbers that are not finite in {tensor.spec.name}.",
                     "The adapter or the base model is damaged; try an earlier checkpoint.")


def _all_finite(values: Tensor) -> bool:
    """By the smallest and the largest one, which are NaN where any is: `isfinite` takes longer than the merge."""
    return values.numel() == 0 or all(math.isfinite(float(end)) for end in torch.aminmax(values))


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
    with Workers() as workers:
        for done, tensor in enumerate(tensors):
            yield Progress("Checking the written weights", done, len(tensors), "tensors")
            record = records.get(tensor.spec.name)
            if record is None or (record.dtype, record.shape) != (tensor.spec.dtype, tensor.spec.shape):
                report.damaged.append(tensor.spec.name)
                continue
            compare = _comparison(tensor, record, _norms(tensor, control))
            compared = list(workers.each(compare, _blocks(tensor), control))
            if not all(same for same, _, _ in compared):
                report.damaged.append(tensor.spec.name)
            if tensor.change:
                report.add(tensor.spec.name, sum(error for _, error, _ in compared),
                           sum(delta for _, _, delta in compared))
    yield Progress("Checking the written weights", len(tensors), len(tensors), "tensors")
    return report


def _comparison(tensor: PlannedTensor, record: TensorRecord, norm: Tensor | None,
                ) -> Callable[[TensorReader, int, int], tuple[bool, float, float]]:
    """Of a block: whether its bits are right, the square of what was lost of the change, and of the change."""
    def compare(reader: TensorReader, start: int, stop: int) -> tuple[bool, float, float]:
        base = source_rows(tensor, reader, start, stop)
        found = reader.rows(record, start, stop)
        wanted, delta = _rows_and_delta(tensor, base, start, stop, norm)
        same = _same_bits(found, wanted)
        if delta is None:
            return same, 0.0, 0.0
        return same, _square_norm(found.float() - base.float() - delta), _square_norm(delta)

    return compare


def _square_norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _same_bits(left: Tensor, right: Tensor) -> bool:
    left, right = left.contiguous().reshape(-1), right.contiguous().reshape(-1)
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


