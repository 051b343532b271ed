"""The leading singular vectors of a matrix, quickly: randomised subspace iteration (arXiv 0909.4061, algorithm 4.4)."""

import torch
from torch import Tensor

_EXACT_SIZE = 128  # up to this the whole decomposition is quicker
_MOST_ITERATIONS = 24
_STEADY = 1e-6  # relative growth of the captured energy at which the iteration ends


def leading_svd(matrix: Tensor, rank: int, generator: torch.Generator,
                most_iterations: int = _MOST_ITERATIONS) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, r), S (r,), Vᵀ (r, n) of the `rank` largest singular values of `matrix` (m, n), in fp32.

    The iteration ends when the sum of their squares has stopped growing, at the latest after `most_iterations`;
    each one costs two products with `matrix`, so a matrix of (4096, 4096) takes about a second.

    Args:
        matrix: on any device.
        rank: at most min(m, n).
        generator: on the CPU; draws the first subspace.
        most_iterations: for where a rough answer does.
    """
    matrix = matrix.float()
    if min(matrix.shape) <= max(_EXACT_SIZE, 2 * rank):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank]
    width = min(rank + max(rank, 16), *matrix.shape)  # the more beyond the rank, the faster it converges
    basis = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    left = torch.linalg.qr(matrix @ basis).Q
    energy = 0.0
    for _ in range(most_iterations):
        right = torch.linalg.qr(matrix.T @ left).Q
        left, triangle = torch.linalg.qr(matrix @ right)
        before, energy = energy, float(torch.linalg.svdvals(triangle)[:rank].square().sum())
        if energy - before <= _STEADY * energy:
            break
    u, s, vh = torch.linalg.svd(left.T @ matrix, full_matrices=False)  # (width, n)
    return left @ u[:, :rank], s[:rank], vh[:rank]
