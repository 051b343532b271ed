"""Which tensors an adapter file holds, and how many numbers are trained, from the module table alone.

Plain Python, so that the form can count while one types; the tests compare it with the files.
"""

import json
import math
from collections.abc import Sequence

from core.config import AdapterConfig, DoraConfig
from core.events import ModuleInfo
from core.targets import rank_of

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_SAFETENSORS_TYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}

Shapes = dict[str, tuple[int, ...]]


def adapter_shapes(targets: Sequence[ModuleInfo], adapter: AdapterConfig) -> Shapes:
    """Shape of every tensor of adapter_model.safetensors by its name there."""
    shapes: Shapes = {}
    for module in targets:
        name = f"base_model.model.{module.name}"
        rank = rank_of(module.name, adapter)
        shapes[f"{name}.lora_A.weight"] = (rank, module.in_features)
        shapes[f"{name}.lora_B.weight"] = (module.out_features, rank)
        if isinstance(adapter, DoraConfig):
            shapes[f"{name}.lora_magnitude_vector"] = (module.out_features,)
    return shapes


def trained_parameters(targets: Sequence[ModuleInfo], adapter: AdapterConfig) -> int:
    """How many numbers are trained: r (in + out) for each adapted module (arXiv 2106.09685, section 4.2), and more
    where the method asks for more."""
    return sum(math.prod(shape) for shape in adapter_shapes(targets, adapter).values())


def file_bytes(shapes: Shapes, dtype: str) -> int:
    """The size of a safetensors file with these tensors, its header included."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(shapes):
        end = offset + math.prod(shapes[name]) * BYTES[dtype]
        header[name] = {"dtype": _SAFETENSORS_TYPES[dtype], "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + math.ceil(length / 8) * 8 + offset  # the length field; the header padded to 8; the numbers
