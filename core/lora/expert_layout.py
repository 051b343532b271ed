"""The two forms of an update of experts: three-dimensional to train, two-dimensional in a PEFT file.

A parameter (experts, out, in) has `lora_A.weight` (r experts, in), the experts one below the other, and
`lora_B.weight` (out, r experts), the experts side by side for every r; the names are in `core.expert_names`.
"""

from torch import Tensor


def to_file(lora_a: Tensor, lora_b: Tensor) -> dict[str, Tensor]:
    """A (experts, r, in) and B (experts, out, r) by PEFT's names, two-dimensional."""
    return {"lora_A.weight": lora_a.reshape(-1, lora_a.shape[2]),
            "lora_B.weight": lora_b.permute(1, 2, 0).reshape(lora_b.shape[1], -1)}


def from_file(lora_a: Tensor, lora_b: Tensor, rank: int) -> tuple[Tensor, Tensor] | None:
    """The inverse of `to_file`; None where the shapes are not those of experts of this rank."""
    if lora_a.ndim != 2 or lora_b.ndim != 2 or rank < 1 or lora_a.shape[0] % rank \
            or lora_a.shape[0] != lora_b.shape[1]:
        return None
    experts = lora_a.shape[0] // rank
    return (lora_a.reshape(experts, rank, -1),
            lora_b.reshape(lora_b.shape[0], rank, experts).permute(2, 0, 1).contiguous())
