"""What an adapter changes in the rows of a weight as it is stored.

LoRA: W' - W = s B A. DoRA: W' - W = m (W + s B A) / ||W + s B A|| - W, where the norm is taken over the
inputs of every output and W is the weight that was never merged (arXiv 2402.09353, equation 5).
Everything is computed in fp64 and rounded once to fp32. LoRA on a weight of 16 bits that stays one is computed in fp32,
whose error is thousands of times smaller than the rounding at the end: it is what a merge of a large model waits for.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from core.control import Control
from core.export.plan import PlannedTensor
from core.export.shards import TensorReader
from core.lora.adapter_file import LoraPair

_SHORT = frozenset({"BF16", "F16"})


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
    if pair.magnitude is None:
        update = _update(pair, start, stop, transposed)
        return update.float().reshape(weight.shape)  # of a convolution: (out, in · k) to (out, in, k)
    base = weight.double()
    changed = base + _update(pair, start, stop, transposed)
    magnitude = pair.magnitude.double()
    if transposed:
        length = changed.square().sum(dim=0).sqrt() if norm is None else norm
        return changed.mul_(magnitude / length).sub_(base).float()
    length = changed.square().sum(dim=1).sqrt()
    return changed.mul_((magnitude[start:stop] / length)[:, None]).sub_(base).float()


def merged_rows(tensor: PlannedTensor, weight: Tensor, start: int, stop: int, norm: Tensor | None = None) -> Tensor:
    """Rows `start` to `stop` of W' as they are stored, in fp32, or fp64 where W is.

    `weight` are the base's rows, zero where it has none; the rest as for `delta_rows`.
    """
    pair = tensor.pair
    if pair is None or not _in_one_product(tensor, weight):
        return changed_rows(tensor, weight, start, stop, norm)[0]
    merged = weight.float()  # a copy, as the weight has 16 bits
    merged.view(len(merged), -1).addmm_(*_factors(pair, start, stop, tensor.transposed, torch.float32))
    return merged


def changed_rows(tensor: PlannedTensor, weight: Tensor, start: int, stop: int,
                 norm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `merged_rows` gives, and the same rows of W' - W in fp32."""
    base = weight if weight.dtype == torch.float64 else weight.float()
    change = tensor.change
    merged = base if change.value is None else change.value[start:stop].to(base.dtype)
    if change.pair is not None:
        if _in_one_product(tensor, weight):
            delta = _update(change.pair, start, stop, tensor.transposed, torch.float32).reshape(weight.shape)
            return merged_rows(tensor, weight, start, stop), delta
        delta = delta_rows(change.pair, merged, start, stop, tensor.transposed, norm)
        merged = merged + delta
        if change.is_update:
            return merged, delta
    if change.rows is not None:
        inside = [(place, index - start) for place, index in enumerate(change.rows.indices) if start <= index < stop]
        merged = merged.clone()
        merged[[index for _, index in inside]] = change.rows.values[[place for place, _ in inside]].to(merged.dtype)
    return merged, (merged - base).float()


def _in_one_product(tensor: PlannedTensor, weight: Tensor) -> bool:
    """True where W' = W + s B A is all, and ends in as few bits as W has."""
    change = tensor.change
    return (change.is_update and change.pair is not None and change.pair.magnitude is None
            and change.pair.lora_a.ndim == 2
            and tensor.spec.dtype in _SHORT and weight.dtype in (torch.bfloat16, torch.float16))


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


def _update(pair: LoraPair, start: int, stop: int, transposed: bool, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows of s B A as the weight is stored, in `dtype`."""
    if pair.lora_a.ndim == 3:  # of all experts, which are the rows
        product = (pair.scale * pair.lora_b[start:stop].to(dtype)) @ pair.lora_a[start:stop].to(dtype)
        return product.transpose(1, 2) if transposed else product
    left, right = _factors(pair, start, stop, transposed, dtype)
    return left @ right


def _factors(pair: LoraPair, start: int, stop: int, transposed: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two matrices whose product are rows of s B A as the weight is stored. One of them is scaled: they are small."""
    if transposed:
        return pair.scale * pair.lora_a[:, start:stop].to(dtype).T, pair.lora_b.to(dtype).T
    return pair.scale * pair.lora_b[start:stop].to(dtype), pair.lora_a.to(dtype)
