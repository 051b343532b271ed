"""How many bytes the weights take, and how many numbers are trained, however the base is held. Plain Python."""

import math
from collections.abc import Sequence

from core.adapter_shapes import BYTES, trained_parameters
from core.config import AdapterConfig, FullConfig, QLoraConfig
from core.records import ModelCard, ModuleInfo

_BLOCK = 64  # weights that share a scale in NF4
_SCALES_BLOCK = 256  # scales that share a scale of their own with double quantisation


def quantised_modules(card: ModelCard) -> list[ModuleInfo]:
    """The modules that a quantised base holds in few bits: the linear ones that are not the head."""
    return [module for module in card.modules if module.type in ("Linear", "Conv1D") and not module.is_output_head]


def weight_bytes(card: ModelCard, adapter: AdapterConfig, dtype: str) -> int:
    """Bytes of the frozen base, `dtype` being the type of what is not quantised."""
    if not isinstance(adapter, QLoraConfig):
        return card.parameters * BYTES[dtype]
    whole, packed = card.parameters, 0
    for module in quantised_modules(card):
        whole -= module.in_features * module.out_features
        packed += _packed_bytes(module, adapter)
    return whole * BYTES[dtype] + packed


def _packed_bytes(module: ModuleInfo, adapter: QLoraConfig) -> int:
    numbers = module.in_features * module.out_features
    if adapter.quantisation == "int8":
        return numbers + 4 * module.out_features  # a scale in fp32 for each row
    scales = math.ceil(numbers / _BLOCK)
    scale_bytes = scales + 4 * math.ceil(scales / _SCALES_BLOCK) if adapter.double_quantisation else 4 * scales
    return math.ceil(numbers / 2) + scale_bytes


def dequantised_bytes(card: ModelCard, adapter: AdapterConfig, dtype: str) -> int:
    """Bytes of the largest weight that is dequantised for a product; 0 where nothing is quantised."""
    if not isinstance(adapter, QLoraConfig):
        return 0
    largest = max((module.in_features * module.out_features for module in quantised_modules(card)), default=0)
    return largest * BYTES[dtype]


def trained_numbers(card: ModelCard, targets: Sequence[ModuleInfo], adapter: AdapterConfig) -> int:
    """How many numbers are trained in the targets or beside them."""
    if not isinstance(adapter, FullConfig):
        return trained_parameters(targets, adapter)
    total = sum(module.parameters for module in targets)
    head = next((module for module in targets if module.is_output_head), None)
    shared = head is not None and card.tied_embeddings and any(module.type == "Embedding" for module in targets)
    return total - (card.vocabulary * card.hidden_size if shared else 0)  # one tensor in two places
