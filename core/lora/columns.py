"""Products with a wide result in blocks of its columns, on the CPU in fp32.

Where the result is wide, it and the other factor no longer lie in the processor's cache together. On two cores of an
AMD EPYC with AVX2, 512 tokens: 576 to 1,536 columns 86 GFLOP/s as a whole, 106 in blocks of 512; 896 to 4,864 81 and
105; 2,048 to 8,192 74 and 103.
"""

import torch
from torch import Tensor

COLUMNS = 512
_FEWEST_ROWS = 64  # for each thread; with fewer, as when an answer is made token by token, the calls cost more


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x weight + bias.

    Args:
        x: (N, in).
        weight: (in, out); may be a transposed view.
        bias: (out,) or None.
        out: (N, out), where the result goes; None makes a new tensor.
    """
    result = x.new_empty(x.shape[0], weight.shape[1]) if out is None else out
    width = weight.shape[1]
    if in_blocks(x, width):
        width = COLUMNS
    for start in range(0, weight.shape[1], width):
        here, part = result[:, start:start + width], weight[:, start:start + width]
        if bias is None:
            torch.mm(x, part, out=here)
        else:
            torch.addmm(bias[start:start + width], x, part, out=here)
    return result


def in_blocks(x: Tensor, width: int) -> bool:
    """True where blocks are quicker than one product of x, (..., in), with (in, width)."""
    return (width >= 2 * COLUMNS and x.device.type == "cpu" and x.dtype == torch.float32
            and x.numel() >= _FEWEST_ROWS * torch.get_num_threads() * x.shape[-1])
