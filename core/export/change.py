"""What an adapter changes in the rows of a weight as it is stored.

LoRA: W' - W = s B A. DoRA: W' - W = m (W + s B A) / ||W + s B A|| - W, where the norm is taken over the
inputs of every output and W is the weight that was never merged (arXiv 2402.09353, equation 5).
Everything is computed in fp64 and rounded once to fp32.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from core.control import Control
from core.export.plan import PlannedTensor
from core.export.shards import TensorReader
from core.lora.adapter_file import LoraPair


def delta_rows(pair: LoraPair, weight: Tensor, start: int, stop: int, transposed: bool,
               norm: Tensor | None = None) -> Tensor:
    """Rows `start` to `stop` of W' - W as the weight is stored, (out, in) or transposed (in, out), in fp32.

    Args:
        pair: the adapter's update of this weight.
        weight: the same rows of the base's weight.
        start: first row.
        stop: the row after the last one.
        transposed: the weight is stored as (in, out).
        norm: of every output, (out,), where these rows do not hold all inputs; see `output_norms`.
    """
    update = _update(pair, start, stop, transposed)
    if pair.magnitude is None:
        return update.float().reshape(weight.shape)  # of a convolution: (out, in · k) to (out, in, k)
    base = weight.double()
    changed = base + update
    magnitude = pair.magnitude.double()
    if transposed:
        length = changed.square().sum(dim=0).sqrt() if norm is None else norm
        return changed.mul_(magnitude / length).sub_(base).float()
    length = changed.square().sum(dim=1).sqrt()
    return changed.mul_((magnitude[start:stop] / length)[:, None]).sub_(base).float()


def changed_rows(tensor: PlannedTensor, weight: Tensor, start: int, stop: int,
                 norm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows `start` to `stop` of W' and of W' - W as they are stored, in fp32, or fp64 where W is.

    `weight` are the base's rows, zero where it has none; the rest as for `delta_rows`.
    """
    base = weight if weight.dtype == torch.float64 else weight.float()
    change = tensor.change
    merged = base if change.value is None else change.value[start:stop].to(base.dtype)
    if change.pair is not None:
        delta = delta_rows(change.pair, merged, start, stop, tensor.transposed, norm)
        merged = merged + delta
        if change.value is None and change.rows is None:
            return merged, delta
    if change.rows is not None:
        inside = [(place, index - start) for place, index in enumerate(change.rows.indices) if start <= index < stop]
        merged = merged.clone()
        merged[[index for _, index in inside]] = change.rows.values[[place for place, _ in inside]].to(merged.dtype)
    return merged, (merged - base).float()


def source_rows(tensor: PlannedTensor, reader: TensorReader, start: int, stop: int) -> Tensor:
    """The base's rows, zero where the vocabulary grew beyond them."""
    known = reader.rows(tensor.source, min(start, tensor.source.rows), min(stop, tensor.source.rows))
    missing = stop - start - known.shape[0] if tensor.source.shape else 0
    return known if missing == 0 else torch.cat([known, known.new_zeros(missing, *known.shape[1:])])


def output_norms(tensor: PlannedTensor, blocks: Iterable[tuple[int, int]], reader: TensorReader,
                 control: Control) -> Tensor | None:
    """||W + s B A|| of every output, (out,), where the blocks of stored rows hold only some of the inputs each.

    None where no norm is needed, or every block has all it needs.
    """
    pair = tensor.pair
    if pair is None or pair.magnitude is None or not tensor.transposed:
        return None
    square = torch.zeros(pair.lora_b.shape[0], dtype=torch.float64)
    for start, stop in blocks:
        control.check()
        changed = reader.rows(tensor.source, start, stop).double() + _update(pair, start, stop, transposed=True)
        square += changed.square().sum(dim=0)
    return square.sqrt()


def _update(pair: LoraPair, start: int, stop: int, transposed: bool) -> Tensor:
    """Rows of s B A as the weight is stored, in fp64."""
    lora_a, lora_b = pair.lora_a.double(), pair.lora_b.double()
    if lora_a.ndim == 3:  # of all experts, which are the rows
        product = lora_b[start:stop] @ lora_a[start:stop]
        product = product.transpose(1, 2) if transposed else product
    else:
        product = lora_a[:, start:stop].T @ lora_b.T if transposed else lora_b[start:stop] @ lora_a
    return product.mul_(pair.scale)
