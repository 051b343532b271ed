"""The numbers that a merged file must hold, told apart from what its arithmetic may have chosen.

Among the millions of numbers W' = W + s B A of a model some lie nearly in the middle between two numbers of the
written type. There fp32 and fp64, or the sum in another order, round to different neighbours, and both are right.
Such a number is taken as the file has it; every other one must be what fp64 rounds to.
"""

from dataclasses import replace

import torch
from torch import Tensor

from core.errors import ModelError
from core.export.change import delta_rows
from core.export.shards import row_blocks
from core.lora.adapter_file import LoraPair

_FP32_ERROR = 2.0**-24  # of one operation, relative to its result


def settled_update(pair: LoraPair, weight: Tensor, found: Tensor, transposed: bool, dtype: torch.dtype) -> Tensor:
    """W' as the file must hold it.

    Args:
        pair: the update; of all experts where it has three dimensions.
        weight: W as it is stored, (out, in), or (in, out) where `transposed`.
        found: what the file holds, of the same shape.
        transposed: how W is stored.
        dtype: of the file, and of what is returned.

    Raises:
        ModelError: the file holds it in another shape.
    """
    if found.shape != weight.shape:
        raise ModelError(f"The export holds a weight of {list(weight.shape)} as {list(found.shape)}.")
    rows = weight.shape[0]
    whole = pair.magnitude is not None and transposed  # whose norms go over all rows
    blocks = [(0, rows)] if whole else row_blocks(rows, weight.numel() // rows)
    return torch.cat([_settled_rows(_rows_of(pair, start, stop, transposed), weight[start:stop].double(),
                                    found[start:stop], transposed, dtype) for start, stop in blocks])


def _settled_rows(pair: LoraPair, weight: Tensor, found: Tensor, transposed: bool, dtype: torch.dtype) -> Tensor:
    exact = weight + delta_rows(pair, weight, 0, weight.shape[0], transposed)
    slack, found = _fp32_slack(pair, weight, exact, transposed), found.to(exact)
    low, high = (exact - slack).to(dtype), (exact + slack).to(dtype)
    return torch.where((low <= found) & (found <= high), found, exact).to(dtype)


def _fp32_slack(pair: LoraPair, weight: Tensor, exact: Tensor, transposed: bool) -> Tensor:
    """How far each number of W' may be off where it was computed in fp32, in any order of the sum.

    |W| + s ||B_i|| ||A_j|| is no less than the magnitudes of all its terms together.
    """
    if pair.magnitude is not None:  # of DoRA only the last sum is in fp32
        return 4 * _FP32_ERROR * (weight.abs() + exact.abs())
    terms = abs(pair.scale) * pair.lora_b.double().norm(dim=-1)[..., :, None] * (
        pair.lora_a.double().norm(dim=-2)[..., None, :])
    terms = terms.transpose(-1, -2) if transposed else terms
    return (pair.lora_a.shape[-2] + 2) * _FP32_ERROR * (weight.abs() + terms.reshape(weight.shape))


def _rows_of(pair: LoraPair, start: int, stop: int, transposed: bool) -> LoraPair:
    """The update of some rows of the weight as it is stored."""
    if pair.lora_a.ndim == 3:  # the rows are the experts
        return replace(pair, lora_a=pair.lora_a[start:stop], lora_b=pair.lora_b[start:stop])
    if transposed:
        return pair if pair.magnitude is not None else replace(pair, lora_a=pair.lora_a[:, start:stop])
    magnitude = None if pair.magnitude is None else pair.magnitude[start:stop]
    return replace(pair, lora_b=pair.lora_b[start:stop], magnitude=magnitude)
