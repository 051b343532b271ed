"""How A and B begin: Kaiming, Gaussian, orthogonal, PiSSA, OLoRA; EVA is in `core.lora.eva`.

PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) begin with a product B0 A0 taken from W and train beside
the residual W - s B0 A0. Here the product is taken off the update instead, s (B A - B0 A0), which is the same
and leaves the base as it is; written down, that is a plain LoRA of rank 2 r on the untouched base.

All of them are for linear layers; embeddings and convolutions keep the start of their layer.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.config import PatternedConfig
from core.lora.eva import directions_of_inputs
from core.lora.experts import ExpertMatrix, expert_matrices
from core.lora.layers import LoraLayer
from core.lora.method import Material
from core.lora.svd import leading_svd
from core.targets import rank_of
from core.words import plural

_SPREAD = 0.1  # of the orthogonal start, as PEFT draws it

Started = Callable[[LoraLayer, torch.Generator], None]


@torch.no_grad()
def initialise(model: PreTrainedModel, layers: Mapping[str, LoraLayer], adapter: PatternedConfig,
               material: Material) -> list[str]:
    """Give A and B of fresh `layers` the start that `adapter.init` names; they hold the Kaiming start.

    Returns what a person may want to know about it, in sentences. The same seed gives the same start.

    Raises:
        Cancelled: `material.check` was told to stop.
    """
    generator = torch.Generator().manual_seed(material.seed)
    if adapter.init == "gaussian":
        _gaussian({**layers, **expert_matrices(model)}, adapter, generator)
    if adapter.init == "eva":
        return _eva(model, layers, material, generator)
    start = _STARTS.get(adapter.init)
    if start is not None:
        for layer in layers.values():
            material.check()
            if _is_linear(layer):
                start(layer, generator)
    return []


def _is_linear(layer: LoraLayer) -> bool:
    other = isinstance(layer.base, torch.nn.Embedding | torch.nn.Conv1d | torch.nn.Conv2d)
    return not other and isinstance(layer.lora_a, torch.nn.Parameter)  # a tied output head has none of its own


def _gaussian(layers: Mapping[str, LoraLayer | ExpertMatrix], adapter: PatternedConfig,
              generator: torch.Generator) -> None:
    """A from a normal distribution of standard deviation 1 / r, B zero."""
    for name, layer in layers.items():
        if isinstance(layer, LoraLayer) and (isinstance(layer.base, torch.nn.Embedding)
                                             or not isinstance(layer.lora_a, torch.nn.Parameter)):
            continue  # an embedding, or the output head that shares its update
        drawn = torch.empty(layer.lora_a.shape).normal_(0.0, 1 / rank_of(name, adapter), generator=generator)
        layer.lora_a.copy_(drawn)


def _orthogonal(layer: LoraLayer, generator: torch.Generator) -> None:
    """A and B both at random, but B A = 0: their inner rows come from the two halves of one orthogonal matrix."""
    outputs, rank = layer.lora_b.shape
    inner = torch.linalg.qr(torch.randn(rank, rank, generator=generator)).Q
    blocks = layer.lora_a.shape[0] // rank  # more than one where a fused layer is adapted in parts
    drawn_a = torch.randn(blocks, layer.in_features, rank // 2, generator=generator) @ inner[0::2]
    layer.lora_a.copy_(_SPREAD * drawn_a.mT.reshape(-1, layer.in_features))
    layer.lora_b.copy_(_SPREAD * torch.randn(outputs, rank // 2, generator=generator) @ inner[1::2])


def _pissa(layer: LoraLayer, generator: torch.Generator) -> None:
    """The principal part of W: s B A = U S Vᵀ of the r largest singular values, S shared by both sides."""
    u, s, vh = leading_svd(_rows(layer), layer.rank, generator)
    root = (s / layer.scale).sqrt()
    layer.lora_a.copy_(root[:, None] * vh)
    layer.lora_b.copy_(u * root)
    layer.count_from_here()


def _olora(layer: LoraLayer, generator: torch.Generator) -> None:
    """The first r columns of Q and rows of R of W = Q R. Those of Q are the Q of the first r columns of W."""
    rows = _rows(layer).float()
    q = torch.linalg.qr(rows[:, :layer.rank]).Q  # (out, r)
    layer.lora_a.copy_(q.T @ rows)
    layer.lora_b.copy_(q)
    layer.count_from_here()


_STARTS: dict[str, Started] = {"orthogonal": _orthogonal, "pissa": _pissa, "olora": _olora}


def _rows(layer: LoraLayer) -> Tensor:
    """The frozen weight as (out, in)."""
    return layer.weight.T if isinstance(layer.base, Conv1D) else layer.weight


def _eva(model: PreTrainedModel, layers: Mapping[str, LoraLayer], material: Material,
         generator: torch.Generator) -> list[str]:
    """A from the directions in which the inputs of each layer vary most, B zero (arXiv 2410.07170, rho = 1)."""
    linear = {name: layer for name, layer in layers.items() if _is_linear(layer)}
    found = directions_of_inputs(model, {name: layer.lora_b.shape[1] for name, layer in linear.items()}, material,
                                 generator)
    shares = {}
    for name, (directions, share) in found.items():
        lora_a, rank = linear[name].lora_a, linear[name].lora_b.shape[1]
        for first in range(0, len(lora_a), rank):  # each part of a fused layer begins alike
            lora_a[first:first + len(directions)] = directions.to(lora_a.device)
        shares[name] = share
    if not shares:
        return ["EVA found too few tokens in the training rows; the layers begin as without it."]
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    mean = sum(shares.values()) / len(shares)
    return [f"EVA: the directions that A begins with explain {mean:.0%} of the variance of the inputs of "
            f"{plural(len(shares), 'layer')}, from {shares[least]:.0%} in {least} to {shares[most]:.0%} in {most}."]
