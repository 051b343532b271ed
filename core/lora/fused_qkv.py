"""LoRA on query, key or value alone where one layer computes all three.

GPT-2 (`c_attn`), Phi-3 (`qkv_proj`), NeoX, Falcon and others (`query_key_value`) hold the three in one
weight, each in its own order of rows. Here each chosen part has an A and a B of its own, as in the
MergedLinear of the paper's own code:

    h = W x + s Σ_p P_p B_p A_p x          P_p puts the rows of part p where the layer has them

Written as one LoRA on the whole layer of rank k r for k parts: the A_p one below the other, the B_p as
blocks with zeros outside of their part. Every program that reads LoRA reads that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from core.fused_parts import PARTS, PARTS_KEY
from core.lora.layers import LoraLayer
from core.records import ModuleInfo


@dataclass(frozen=True)
class QkvLayout:
    """The order of a fused layer's outputs: `groups` times the rows of q, then k, then v of one group."""

    groups: int
    rows: tuple[int, int, int]

    @property
    def totals(self) -> tuple[int, int, int]:
        """How many outputs are query, key and value."""
        q, k, v = self.rows
        return self.groups * q, self.groups * k, self.groups * v

    def index(self, part: str) -> Tensor:
        """The outputs that belong to `part`, ascending, int64."""
        number = PARTS.index(part)
        start = sum(self.rows[:number])
        inside = torch.arange(start, start + self.rows[number])
        return (torch.arange(self.groups)[:, None] * sum(self.rows) + inside).reshape(-1)


def layout_of(config: PretrainedConfig, name: str, out_features: int) -> QkvLayout | None:
    """The layout of the layer called `name`; None where it is not a fused projection of a known order."""
    kind = name.rpartition(".")[2]
    wanted = _KINDS.get(config.model_type)
    if kind != wanted or "cross" in name:  # cross-attention fuses key and value alone
        return None
    layout = _layout(config)
    return layout if layout is not None and sum(layout.totals) == out_features else None


def qkv_layout(model: nn.Module, info: ModuleInfo) -> QkvLayout:
    """The layout of a module that is listed with `qkv_rows`."""
    config = model.config
    assert isinstance(config, PretrainedConfig)
    layout = layout_of(config, info.name, info.out_features)
    assert layout is not None, "only listed where it is known"
    return layout


_KINDS = {
    "gpt2": "c_attn", "openai-gpt": "c_attn", "gpt_bigcode": "c_attn", "phi3": "qkv_proj",
    "gpt_neox": "query_key_value", "gpt_neox_japanese": "query_key_value", "bloom": "query_key_value",
    "persimmon": "query_key_value", "falcon": "query_key_value", "mpt": "Wqkv",
}


def _layout(config: PretrainedConfig) -> QkvLayout | None:
    """As the attention of each family takes the three apart (transformers, modeling files of 5.24)."""
    heads = int(config.num_attention_heads)
    width = int(config.hidden_size)
    head = width // heads
    kind = config.model_type
    if kind in ("gpt2", "openai-gpt", "mpt"):
        return QkvLayout(1, (width, width, width))
    if kind == "phi3":
        head = int(getattr(config, "head_dim", None) or head)
        shared = int(config.num_key_value_heads) * head
        return QkvLayout(1, (heads * head, shared, shared))
    if kind == "falcon" and config.new_decoder_architecture:
        groups = int(config.num_kv_heads)
        return QkvLayout(groups, (heads // groups * head, head, head))
    if kind in ("falcon", "gpt_bigcode") and config.multi_query:
        return QkvLayout(1, (width, head, head))
    return QkvLayout(heads, (head, head, head))


class FusedQkvLayer(LoraLayer):
    """A LoraLayer whose update reaches only some parts of a fused projection.

    Args:
        base: the frozen fused layer.
        rank: inner dimension r of every part.
        alpha: the update of every part is scaled by alpha / rank.
        dropout, generator: as in LoraLayer.
        layout: the order of the base's outputs.
        parts: which of q, k and v, without repetition.

    Shapes, with k parts of n outputs together: lora_a (k r, in), the parts' A one below the other;
    lora_b (n, r), the parts' B one below the other.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0,
                 generator: torch.Generator | None = None, *, layout: QkvLayout, parts: Sequence[str]) -> None:
        super().__init__(base, rank * len(parts), alpha * len(parts), dropout, generator)
        self.layout = layout
        self.parts = tuple(parts)
        places = [layout.index(part) for part in self.parts]
        columns = [torch.full((len(place),), number * rank) for number, place in enumerate(places)]
        device = self.lora_a.device
        self.register_buffer("_row", torch.cat(places)[:, None].to(device), persistent=False)
        self.register_buffer("_column", (torch.cat(columns)[:, None] + torch.arange(rank)).to(device),
                             persistent=False)
        self.lora_b = nn.Parameter(torch.zeros(sum(len(place) for place in places), rank, device=device))

    @property
    def part_rank(self) -> int:
        """Inner dimension r of one part."""
        return self.lora_b.shape[1]

    def left(self) -> Tensor:
        """B as the whole layer sees it, (out, k r): every part's block at its rows and columns, zero elsewhere."""
        block = self.lora_b.new_zeros(self.out_features, self.rank)
        return block.index_put((self.get_buffer("_row"), self.get_buffer("_column")), self.lora_b)

    @torch.no_grad()
    def take(self, lora_a: Tensor, block_b: Tensor) -> None:
        """Copy A (k r, in) and B (out, k r) of the form that is written."""
        self.lora_a.copy_(lora_a)
        rows, columns = self.get_buffer("_row").cpu(), self.get_buffer("_column").cpu()
        self.lora_b.copy_(block_b.cpu()[rows, columns])

    @torch.no_grad()
    def holds(self, block_b: Tensor) -> bool:
        """True where B (out, k r) is zero outside of the blocks of these parts."""
        rest = block_b.detach().cpu().clone()
        rest[self.get_buffer("_row").cpu(), self.get_buffer("_column").cpu()] = 0
        return not bool(rest.any())

    def extra_repr(self) -> str:
        """What `print(model)` shows of this layer."""
        return f"parts={''.join(self.parts)}, rank={self.part_rank}, scale={self.scale:g}, dropout={self.dropout:g}"


def alpha_factor(layer: object, rslora: bool) -> float:
    """What alpha is multiplied with in a file, where the rank is that of all parts together (or of the update and its
    start) and the scale the same."""
    parts = len(layer.parts) if isinstance(layer, FusedQkvLayer) else 1
    if isinstance(layer, LoraLayer) and layer.start() is not None:
        parts = 2
    return math.sqrt(parts) if rslora else parts


def parts_of(block_b: Tensor, layout: QkvLayout) -> tuple[str, ...] | None:
    """Which parts a written B (out, k r) belongs to, told by its zeros; None where it is a plain LoRA.

    The first of the smallest equal blocks that fits counts. B = 0 tells nothing and is plain.
    """
    owner = torch.empty(block_b.shape[0], dtype=torch.long)
    for number, part in enumerate(PARTS):
        owner[layout.index(part)] = number
    touched = torch.stack([block_b.cpu()[owner == number].ne(0).any(dim=0) for number in range(len(PARTS))])  # (3, k r)
    for count in (2, 1):  # all three are a plain LoRA of that rank
        if block_b.shape[1] % count:
            continue
        blocks = touched.reshape(len(PARTS), count, -1).any(dim=2)  # (3, k)
        found = [int(blocks[:, number].nonzero()) for number in range(count) if int(blocks[:, number].sum()) == 1]
        if len(found) == count and found == sorted(set(found)):
            return tuple(PARTS[number] for number in found)
    return None


def noted_parts(model: nn.Module) -> dict[str, Any]:
    """What workbench.json says of the parts, so that training can go on with them; nothing for plain layers."""
    found = next((module.parts for module in model.modules() if isinstance(module, FusedQkvLayer)), None)
    return {} if found is None else {PARTS_KEY: list(found)}


def fused_kind(layout: QkvLayout, parts: Sequence[str]) -> Any:
    """A constructor like LoraLayer's, for `inject.wrap`."""
    def make(base: nn.Module, rank: int, alpha: float, dropout: float = 0.0,
             generator: torch.Generator | None = None) -> FusedQkvLayer:
        return FusedQkvLayer(base, rank, alpha, dropout, generator, layout=layout, parts=parts)

    return make
