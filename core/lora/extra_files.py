"""The prefix and the bottleneck adapters on disk.

The prefix lies in PEFT's layout (peft_type PREFIX_TUNING): `adapter_config.json`, and
`adapter_model.safetensors` with one tensor, `prompt_embeddings` (length, layers * 2 * heads * head_dim):
for every virtual token the key and then the value of layer 0, of layer 1 and so on.

No library of others reads bottleneck adapters in this form, so the layout is ours: `bottleneck_config.json`
(format, size, activation, placement, first_layer, last_layer, base) and `bottleneck.safetensors` with four tensors
for each module whose output they follow, in the orientation of nn.Linear: `<module>.down.weight` (size, width),
`.down.bias` (size,), `.up.weight` (width, size), `.up.bias` (width,). The output h of the module becomes
h + up(activation(down(h))).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core import files
from core.adapter_folder import (
    BOTTLENECK_CONFIG,
    BOTTLENECK_FOLDER,
    BOTTLENECK_WEIGHTS,
    CONFIG_NAME,
    ORIGIN_NAME,
    PREFIX_FOLDER,
    PREFIX_TYPE,
    WEIGHTS_NAME,
    read_object,
)
from core.config import BottleneckConfig
from core.errors import AdapterError
from core.extra_shapes import PROMPT_KEY, bottleneck_places, key_value_width
from core.lora.tensor_file import write_tensors
from core.records import ModuleInfo

BOTTLENECK_FORMAT = "lora-workbench bottleneck 1"
ACTIVATIONS = ("gelu", "relu", "silu")
_PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")


@dataclass(frozen=True)
class Geometry:
    """What the keys and values of a model look like; both are (rows, heads, tokens, head_dim) in every layer."""

    layers: int
    heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Numbers of the keys of one token in one layer."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class PrefixFile:
    """A validated prefix: `values` (length, layers * 2 * heads * head_dim)."""

    values: Tensor
    geometry: Geometry


@dataclass(frozen=True)
class BottleneckFile:
    """Validated bottleneck adapters: by the module that they follow, the four tensors by their names."""

    tensors: dict[str, dict[str, Tensor]]
    size: int
    activation: str


@dataclass(frozen=True)
class Extras:
    """What stands beside the adapter of the layers, or alone. `prefix_folder` is where the prefix lies, `config` the
    one of the prefix, or else that of the bottleneck adapters."""

    prefix: PrefixFile | None = None
    prefix_folder: Path | None = None
    bottleneck: BottleneckFile | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def stands_alone_in(self, folder: Path) -> bool:
        """True if `folder` holds no adapter of layers besides."""
        return bool(self.words) and (self.prefix_folder == folder or not (folder / CONFIG_NAME).exists())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the files: "prefix", and those of the bottleneck adapters by their names there."""
        named = {"prefix": self.prefix.values} if self.prefix else {}
        if self.bottleneck:
            named |= {f"{module}.{part}": tensor for module, parts in self.bottleneck.tensors.items()
                      for part, tensor in parts.items()}
        return named

    def rounded_like(self, other: "Extras") -> "Extras":
        """The same with every number rounded as it is in `other`, which holds the same tensors in other types."""
        prefix, bottleneck, types = self.prefix, self.bottleneck, other.tensors
        if prefix is not None:
            prefix = replace(prefix, values=prefix.values.to(types["prefix"].dtype))
        if bottleneck is not None:
            bottleneck = replace(bottleneck, tensors={
                module: {part: tensor.to(types[f"{module}.{part}"].dtype) for part, tensor in parts.items()}
                for module, parts in bottleneck.tensors.items()})
        return replace(self, prefix=prefix, bottleneck=bottleneck)

    @property
    def words(self) -> str:
        """What there is: "a prefix", "bottleneck adapters", both, or ""."""
        parts = ["a prefix"] * (self.prefix is not None) + ["bottleneck adapters"] * (self.bottleneck is not None)
        return " and ".join(parts)


def read_extras(folder: Path) -> Extras:
    """Read and check the prefix and the bottleneck adapters in an adapter's folder, whichever there are.

    Raises:
        AdapterError: a part that is there can not be used.
    """
    prefix = bottleneck = None
    config: dict[str, Any] = {}
    places = [path for path in (folder / PREFIX_FOLDER, folder) if _is_prefix(path)]
    if len(places) > 1:
        raise AdapterError(f"The adapter in {folder} has two prefixes.", f"Remove {places[0]}.")
    for place in places:
        config = read_object(place / CONFIG_NAME)
        prefix = read_prefix(place, config)
    if (folder / BOTTLENECK_FOLDER / BOTTLENECK_CONFIG).exists():
        place = folder / BOTTLENECK_FOLDER
        own = read_object(place / BOTTLENECK_CONFIG)
        config = config or own
        bottleneck = read_bottleneck(place, own)
    return Extras(prefix, places[0] if places else None, bottleneck, config)


def extra_misfit(extras: Extras, modules: Sequence[ModuleInfo]) -> str:
    """Why they do not fit a model with these modules; "" where they do. The number of heads is not compared."""
    try:
        if extras.prefix is not None:
            wanted, has = (extras.prefix.geometry.layers, extras.prefix.geometry.width), key_value_width(modules)
            if wanted != has:
                return f"the prefix is for {wanted[0]} layers of width {wanted[1]}, there are {has[0]} of {has[1]}"
        if extras.bottleneck is None:
            return ""
        widths = {place.module: place.width for place in bottleneck_places(modules, BottleneckConfig())}
    except AdapterError as error:
        return error.message[:1].lower() + error.message[1:].rstrip(".")
    for module, tensors in extras.bottleneck.tensors.items():
        if widths.get(module) != len(tensors["up.bias"]):
            has_it = f"is {widths[module]} wide" if module in widths else "does not exist there"
            return f"{module} should be {len(tensors['up.bias'])} wide but {has_it}"
    return ""


def _is_prefix(folder: Path) -> bool:
    if not (folder / CONFIG_NAME).exists():
        return False
    if read_object(folder / CONFIG_NAME).get("peft_type") == PREFIX_TYPE:
        return True
    if folder.name == PREFIX_FOLDER:
        raise AdapterError(f"{folder} should hold a prefix, but holds another kind of adapter.",
                           "Adapters of layers do not lie in that sub-folder.")
    return False


def copy_extras(source: Path, folder: Path, dtype: torch.dtype | None, origin: dict[str, Any]) -> None:
    """Write the parts in sub-folders of `source` again into `folder`, in another number type (None: the same).

    Raises:
        AdapterError: a number is too large for that type.
    """
    for part, config, weights in ((PREFIX_FOLDER, CONFIG_NAME, WEIGHTS_NAME),
                                  (BOTTLENECK_FOLDER, BOTTLENECK_CONFIG, BOTTLENECK_WEIGHTS)):
        if (source / part / config).exists():
            (folder / part).mkdir()
            write_tensors(folder / part / weights, cast_tensors(source / part / weights, dtype), {"format": "pt"})
            files.write_text(folder / part / config, (source / part / config).read_text(encoding="utf-8"))
            files.write_text(folder / part / ORIGIN_NAME, json.dumps(origin, indent=2) + "\n")


def read_prefix(folder: Path, config: dict[str, Any]) -> PrefixFile:
    """Check a prefix in PEFT layout; `config` is its adapter_config.json.

    Raises:
        AdapterError: missing, damaged, not a prefix of a causal model, of another shape than it says,
            or not finite.
    """
    told = (config.get(name) for name in ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim"))
    sizes = [size for size in told if isinstance(size, int) and size >= 1]
    if len(sizes) < 4 or sizes[3] % sizes[2]:
        raise AdapterError(f"The prefix in {folder} does not say its sizes.", "Its adapter_config.json is damaged.")
    if config.get("num_transformer_submodules") not in (1, None):
        raise AdapterError(f"The prefix in {folder} belongs to a model with an encoder, which is not supported.")
    length, layers, heads, width = sizes
    tensors = _load(folder / WEIGHTS_NAME)
    values = tensors.get(PROMPT_KEY)
    if set(tensors) != {PROMPT_KEY} or values is None:
        raise AdapterError(f"The prefix in {folder} should hold {PROMPT_KEY} alone.", "The file is of another kind.")
    if tuple(values.shape) != (length, 2 * layers * width):
        raise AdapterError(f"The prefix in {folder} should be {(length, 2 * layers * width)} but is "
                           f"{tuple(values.shape)}.")
    _require_finite(folder, tensors)
    return PrefixFile(values, Geometry(layers, heads, width // heads))


def read_bottleneck(folder: Path, config: dict[str, Any]) -> BottleneckFile:
    """Check bottleneck adapters; `config` is their bottleneck_config.json.

    Raises:
        AdapterError: missing, damaged, of an unknown form, incomplete, of a wrong shape, or not finite.
    """
    size, activation = config.get("size"), config.get("activation")
    if config.get("format") != BOTTLENECK_FORMAT or not isinstance(size, int) or activation not in ACTIVATIONS:
        raise AdapterError(f"The bottleneck adapters in {folder} are of a form that is not known.",
                           f"{BOTTLENECK_CONFIG} should say {BOTTLENECK_FORMAT!r}.")
    tensors = _load(folder / BOTTLENECK_WEIGHTS)
    _require_finite(folder, tensors)
    by_module: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part = next((part for part in _PARTS if key.endswith(f".{part}")), None)
        if part is None:
            raise AdapterError(f"The bottleneck adapters in {folder} hold {key}, which is no part of them.")
        by_module.setdefault(key.removesuffix(f".{part}"), {})[part] = tensor
    for module, found in by_module.items():
        _check_parts(folder, module, found, size)
    if not by_module:
        raise AdapterError(f"The bottleneck adapters in {folder} are empty.")
    return BottleneckFile(by_module, size, str(activation))


def _check_parts(folder: Path, module: str, found: dict[str, Tensor], size: int) -> None:
    if set(found) != set(_PARTS):
        raise AdapterError(f"The bottleneck adapters in {folder} hold only a part of {module}.",
                           "The file is incomplete.")
    width = found["up.bias"].numel()
    wanted = {"down.weight": (size, width), "down.bias": (size,), "up.weight": (width, size), "up.bias": (width,)}
    for part, shape in wanted.items():
        if tuple(found[part].shape) != shape:
            raise AdapterError(f"In the bottleneck adapters in {folder}, {module}.{part} should be {shape} but is "
                               f"{tuple(found[part].shape)}.")


def write_bottleneck(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write both files into `folder`, which exists; the caller makes it whole."""
    write_tensors(folder / BOTTLENECK_WEIGHTS, tensors, {"format": "pt"})
    files.write_text(folder / BOTTLENECK_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def cast_tensors(path: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of a file in another number type; None leaves them as they are.

    Raises:
        AdapterError: a number is too large for that type.
    """
    tensors = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in load_file(path).items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{name} holds numbers too large for {str(dtype).removeprefix('torch.')}; nothing was "
                               "written.", "Choose bf16 or fp32 instead.")
    return tensors


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise AdapterError(f"{path.parent} has no {path.name}.",
                           "Adapters are read from safetensors only; pickle files are refused.") from None
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged: {error}.") from None


def _require_finite(folder: Path, tensors: dict[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"The adapter in {folder} holds numbers that are not finite in {key}.")
