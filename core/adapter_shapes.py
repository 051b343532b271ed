"""Which tensors an adapter file holds, and how many numbers are trained, from the module table alone.

Plain Python, so that the form can count while one types; the tests compare it with the files.
"""

import json
import math
from collections.abc import Sequence

from core.config import AdaLoraConfig, AdapterConfig, DoraConfig, LowRankConfig, PatternedConfig
from core.expert_names import written_module
from core.fused_parts import chosen_parts, part_rows
from core.records import ModuleInfo
from core.targets import rank_of, tied_head

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_SAFETENSORS_TYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}

Shapes = dict[str, tuple[int, ...]]


def adapter_shapes(targets: Sequence[ModuleInfo], adapter: AdapterConfig) -> Shapes:
    """Shape of every tensor of adapter_model.safetensors by its name there."""
    shapes: Shapes = {}
    if not isinstance(adapter, LowRankConfig):  # no adapter of the layers
        return shapes
    names = {module.name for module in targets}
    for module in targets:
        name = f"base_model.model.{module.name}"
        rank = rank_of(module.name, adapter) * max(len(chosen_parts(module, adapter)), module.experts, 1)
        if has_start(module, adapter):
            rank *= 2
        if module.experts:  # all of them in one matrix, below a module of their own
            name = f"base_model.model.{written_module(module.name, names)}"
        if isinstance(adapter, AdaLoraConfig):  # as at its start
            shapes[f"{name}.lora_A"] = (rank, module.in_features)
            shapes[f"{name}.lora_E"] = (rank, 1)
            shapes[f"{name}.lora_B"] = (module.out_features, rank)
            continue
        if module.type == "Embedding":
            shapes[f"{name}.lora_embedding_A"] = (rank, module.in_features)
            shapes[f"{name}.lora_embedding_B"] = (module.out_features, rank)
            continue
        kernel = module.tensors[0][1][2:] if module.type in ("Conv1d", "Conv2d") else ()
        shapes[f"{name}.lora_A.weight"] = (rank, module.in_features // math.prod(kernel), *kernel)
        shapes[f"{name}.lora_B.weight"] = (module.out_features, rank, *(1 for _ in kernel))
        if isinstance(adapter, DoraConfig):
            shapes[f"{name}.lora_magnitude_vector"] = (module.out_features,)
    return shapes


def has_start(module: ModuleInfo, adapter: AdapterConfig) -> bool:
    """True where the file's update holds, beside what is trained, the start that is taken off (PiSSA, OLoRA)."""
    return isinstance(adapter, PatternedConfig) and adapter.takes_from_base and module.type in ("Linear", "Conv1D")


def start_numbers(targets: Sequence[ModuleInfo], adapter: AdapterConfig) -> int:
    """How many numbers the starts hold, which are kept beside what is trained."""
    return sum(rank_of(module.name, adapter) * (module.in_features + module.out_features) for module in targets
               if isinstance(adapter, PatternedConfig) and has_start(module, adapter))


def trained_parameters(targets: Sequence[ModuleInfo], adapter: AdapterConfig) -> int:
    """How many numbers are trained: r (in + out) for each adapted module (arXiv 2106.09685, section 4.2), and more
    where the method asks for more."""
    blank = (_blank_numbers(targets, adapter) if isinstance(adapter, LowRankConfig) else 0) \
        + start_numbers(targets, adapter)
    tied = tied_head(targets, adapter)
    if tied is not None and isinstance(adapter, LowRankConfig):  # in the file twice
        blank += rank_of(tied.name, adapter) * (tied.in_features + tied.out_features)
    return sum(math.prod(shape) for shape in adapter_shapes(targets, adapter).values()) - blank


def _blank_numbers(targets: Sequence[ModuleInfo], adapter: LowRankConfig) -> int:
    """What the file holds as zeros between the blocks of B, where parts of fused layers are adapted."""
    blank = 0
    for module in targets:
        parts = chosen_parts(module, adapter)
        if parts:
            whole = len(parts) * module.out_features
            blank += rank_of(module.name, adapter) * (whole - sum(part_rows(module, parts)))
    return blank


def is_exact(name: str) -> bool:
    """True for tensors that are saved in fp32 whatever is chosen: a magnitude changes less in training than 16 bits
    could tell."""
    return name.endswith(".lora_magnitude_vector")


def file_bytes(shapes: Shapes, dtype: str) -> int:
    """The size of a safetensors file with these tensors, its header included."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    kinds = {name: "fp32" if is_exact(name) else dtype for name in shapes}
    for name in sorted(shapes, key=lambda name: (-BYTES[kinds[name]], name)):  # the order of the file
        kind = kinds[name]
        end = offset + math.prod(shapes[name]) * BYTES[kind]
        header[name] = {"dtype": _SAFETENSORS_TYPES[kind], "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + math.ceil(length / 8) * 8 + offset  # the length field; the header padded to 8; the numbers
