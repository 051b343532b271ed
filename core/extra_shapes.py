"""What [prefix] and [bottleneck] add to a model, from its module table alone. Plain Python.

The estimate counts with it, and the methods themselves find their places with it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core.config import BottleneckConfig, NoAdapterConfig, PrefixConfig, RunConfig
from core.errors import AdapterError
from core.records import ModuleInfo

Shapes = dict[str, tuple[int, ...]]
_LINEAR = ("Linear", "Conv1D")
NOTHING_TO_TRAIN = "Nothing would be trained: there is no adapter, no prefix and no bottleneck adapter."
PROMPT_KEY = "prompt_embeddings"  # PEFT's name of the whole prefix
_FUSED = ("c_attn", "qkv_proj", "query_key_value", "Wqkv")
_KEYS = ("k_proj", "key")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(r"mlp|feed_forward|ffn|moe", re.IGNORECASE)
_LAYER = re.compile(r"(?P<stack>\D+?)\.(?P<layer>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True)
class Place:
    """A module whose output goes through a bottleneck adapter: its name, layer, part and width."""

    module: str
    layer: int
    part: Literal["attention", "mlp"]
    width: int


def key_value_width(modules: Sequence[ModuleInfo]) -> tuple[int, int]:
    """(number of layers, width of the keys of one token in each of them).

    From the key projection, or from a fused one less the width of the queries, which is what the
    output projection of the attention takes.

    Raises:
        AdapterError: no attention with keys is found in every layer, or its width differs.
    """
    layers = _decoder_layers(modules)
    widths = {_layer_key_width(layer) for layer in layers.values()}
    if len(widths) != 1 or None in widths:
        raise AdapterError("This kind of model can not take a prefix: its layers have no keys and values of one size.",
                           "Leave out [prefix].")
    return len(layers), next(width for width in widths if width is not None)


def _layer_key_width(layer: list[tuple[str, ModuleInfo]]) -> int | None:
    attention = [info for rest, info in layer if _ATTENTION.search(rest) and info.type in _LINEAR]
    for info in attention:
        if info.kind in _KEYS:
            return info.out_features
    for info in attention:
        if info.kind in _FUSED:
            queries = next((other.in_features for other in attention if other is not info), 0)
            return (info.out_features - queries) // 2 if queries else None
    return None


def prefix_shapes(modules: Sequence[ModuleInfo], prefix: PrefixConfig) -> Shapes:
    """Shape of the tensor of the prefix's file: (length, layers * 2 * width).

    Raises:
        AdapterError: the model can not take a prefix.
    """
    layers, width = key_value_width(modules)
    return {PROMPT_KEY: (prefix.length, 2 * layers * width)}


def prefix_parameters(modules: Sequence[ModuleInfo], prefix: PrefixConfig) -> int:
    """How many numbers are trained for the prefix: itself, or the network that computes it.

    Raises:
        AdapterError: the model can not take a prefix.
    """
    layers, width = key_value_width(modules)
    inner, out = prefix.projection_size, 2 * layers * width
    if not prefix.projection:
        return prefix.length * out
    return prefix.length * width + inner * (width + 1) + out * (inner + 1)


def bottleneck_places(modules: Sequence[ModuleInfo], bottleneck: BottleneckConfig) -> list[Place]:
    """Where the bottleneck adapters go: behind the attention and the MLP of every chosen layer.

    The attention is the child of a layer whose name says so and that holds linear layers; the MLP likewise.
    Where a layer has no module for its MLP (OPT), its last linear layer counts; where the module includes
    the residual (BERT), the linear layer before it, as the adapter stands before the residual (figure 2).

    Raises:
        AdapterError: the model has no such layers, or none in the range.
    """
    layers = _decoder_layers(modules)
    last = max(layers, default=-1) if bottleneck.last_layer is None else bottleneck.last_layer
    places = []
    for number, layer in layers.items():
        if not bottleneck.first_layer <= number <= last:
            continue
        found = [_attention_place(number, layer), _mlp_place(number, layer)]
        if None in found:
            raise AdapterError(f"Attention and MLP of layer {number} of this kind of model can not be told apart.",
                               "Leave out [bottleneck].")
        places += [place for place in found if place and bottleneck.placement in ("both", place.part)]
    if not places:
        raise AdapterError("The layer range of the bottleneck adapters holds no layer of this model.",
                           f"It has {len(layers)} layers, counted from 0.")
    return places


def bottleneck_shapes(places: Sequence[Place], bottleneck: BottleneckConfig) -> Shapes:
    """Shape of every tensor of the bottleneck adapters' file by its name there."""
    shapes: Shapes = {}
    for place in places:
        shapes[f"{place.module}.down.weight"] = (bottleneck.size, place.width)
        shapes[f"{place.module}.down.bias"] = (bottleneck.size,)
        shapes[f"{place.module}.up.weight"] = (place.width, bottleneck.size)
        shapes[f"{place.module}.up.bias"] = (place.width,)
    return shapes


def count(shapes: Shapes) -> int:
    """Numbers in all tensors together."""
    return sum(math.prod(shape) for shape in shapes.values())


def _decoder_layers(modules: Sequence[ModuleInfo]) -> dict[int, list[tuple[str, ModuleInfo]]]:
    """The modules of every layer of the largest stack of layers, each with its name within the layer."""
    stacks: dict[str, dict[int, list[tuple[str, ModuleInfo]]]] = {}
    for info in modules:
        # the outermost number is that of the layer; one further in is that of an expert
        match = _LAYER.fullmatch(info.name)
        if match is not None:
            layer = stacks.setdefault(match["stack"], {}).setdefault(int(match["layer"]), [])
            layer.append((match["rest"], info))
    if not stacks:
        return {}
    return max(stacks.values(), key=lambda stack: sum(info.parameters for layer in stack.values() for _, info in layer))


def _attention_place(number: int, layer: list[tuple[str, ModuleInfo]]) -> Place | None:
    for rest, info in layer:
        child, _, below = rest.partition(".")
        if below and _ATTENTION.search(child) and info.type in _LINEAR:
            inner = next((other for name, other in layer if name == f"{child}.output.dense"), None)
            module = inner.name if inner else info.name.removesuffix(f".{below}")
            return Place(module, number, "attention", info.in_features)
    return None


def _mlp_place(number: int, layer: list[tuple[str, ModuleInfo]]) -> Place | None:
    width = next((info.in_features for _, info in layer if info.type in _LINEAR), 0)
    for rest, info in layer:
        child, _, below = rest.partition(".")
        if below and _MLP.search(child) and not _ATTENTION.search(child):
            return Place(info.name.removesuffix(f".{below}"), number, "mlp", width)
    for rest, info in layer:
        if rest in ("fc2", "output.dense", "lin2") and info.type in _LINEAR:
            return Place(info.name, number, "mlp", width)
    return None


def extra_parameters(config: RunConfig, modules: Sequence[ModuleInfo]) -> int:
    """How many numbers [prefix] and [bottleneck] train together. Raises AdapterError where the model can not take them.
    """
    trained = 0
    if config.prefix is not None:
        trained += prefix_parameters(modules, config.prefix)
    if config.bottleneck is not None:
        trained += count(bottleneck_shapes(bottleneck_places(modules, config.bottleneck), config.bottleneck))
    return trained


def extra_files(config: RunConfig, modules: Sequence[ModuleInfo]) -> list[Shapes]:
    """The tensors of the files that [prefix] and [bottleneck] add. Raises AdapterError as `extra_parameters`."""
    files = []
    if config.prefix is not None:
        files.append(prefix_shapes(modules, config.prefix))
    if config.bottleneck is not None:
        files.append(bottleneck_shapes(bottleneck_places(modules, config.bottleneck), config.bottleneck))
    return files


def lowest_extra_layer(config: RunConfig) -> int | None:
    """The lowest layer in which [prefix] or [bottleneck] train something; None where there is neither."""
    if config.prefix is not None:
        return 0
    return config.bottleneck.first_layer if config.bottleneck is not None else None


def extra_activation_numbers(config: RunConfig, modules: Sequence[ModuleInfo]) -> int:
    """Numbers that a token leaves behind in the bottleneck adapters for the backward pass: the input, and the middle
    before and after its bend."""
    if config.bottleneck is None:
        return 0
    return sum(place.width + 2 * config.bottleneck.size for place in bottleneck_places(modules, config.bottleneck))


def extra_problems(config: RunConfig, modules: Sequence[ModuleInfo] | None) -> list[tuple[str, str, str]]:
    """What keeps [prefix] and [bottleneck] from working, as (field, message, hint); modules None: not known yet."""
    bottleneck = config.bottleneck
    if isinstance(config.adapter, NoAdapterConfig) and config.prefix is None and bottleneck is None:
        return [("adapter.method", NOTHING_TO_TRAIN, "Choose a method, or add a prefix or bottleneck adapters.")]
    if bottleneck is not None and bottleneck.last_layer is not None and bottleneck.first_layer > bottleneck.last_layer:
        return [("bottleneck.first_layer", f"The first layer ({bottleneck.first_layer}) is above the last one "
                 f"({bottleneck.last_layer}).", "Make it smaller.")]
    found = []
    if modules is None:
        return found
    if config.prefix is not None:
        try:
            key_value_width(modules)
        except AdapterError as error:
            found.append(("prefix.length", error.message, error.hint))
    if bottleneck is not None:
        try:
            places = bottleneck_places(modules, bottleneck)
        except AdapterError as error:
            return [*found, ("bottleneck.first_layer", error.message, error.hint)]
        narrowest = min(place.width for place in places)
        if bottleneck.size > narrowest:
            found.append(("bottleneck.size", f"The layers of this model are only {narrowest:,} wide; a wider middle is "
                          "no bottleneck.", f"Choose at most {narrowest:,}."))
    return found
