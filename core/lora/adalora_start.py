"""The triplets of an AdaLoRA adapter as the start of a run.

Each goes back to its place among the first ranks. The places that were pruned stay as they are drawn, with their
entry of Λ at zero: the model gives what the adapter gives, and the ranks can be chosen anew.
"""

from collections.abc import Callable
from functools import partial

from safetensors.torch import load_file
from torch import nn

from core.adapter_folder import WEIGHTS_NAME
from core.errors import AdapterError
from core.lora.adalora import AdaLoraLayer, adalora_layers
from core.lora.adalora_file import Triplets, read_triplets
from core.lora.adapter_file import AdapterFile
from core.lora.pair_start import require_same_modules, require_same_scale


def begin_triplets(model: nn.Module, file: AdapterFile) -> list[Callable[[], object]]:
    """What copies the triplets of `file` into the fresh layers of `model`; nothing is copied yet.

    Raises:
        AdapterError: another set of modules, another initial rank, scale or size; names the module.
    """
    layers = adalora_layers(model)
    tensors = {key: tensor for key, tensor in load_file(file.path / WEIGHTS_NAME).items() if ".lora_" in key}
    theirs = read_triplets(tensors, file.config, file.path)
    require_same_modules(set(layers), set(theirs))
    for name, triplets in theirs.items():
        layer = layers[name]
        shape = (triplets.first_rank, triplets.a.shape[1], triplets.b.shape[0])
        if shape != (layer.rank, layer.in_features, layer.out_features):
            raise AdapterError(f"{name} began with rank {shape[0]} and is {shape[2]} x {shape[1]} in the adapter to "
                               f"start from, but begins with {layer.rank} and is {layer.out_features} x "
                               f"{layer.in_features} in this run.", "Set the same initial rank, and choose the same "
                               "base model.")
        require_same_scale(name, layer.scale, triplets.scale)
    return [partial(_copy, layers[name], triplets) for name, triplets in theirs.items()]


def _copy(layer: AdaLoraLayer, triplets: Triplets) -> None:
    places = triplets.places.to(layer.lora_a.device)
    layer.lora_a[places] = triplets.a.to(layer.lora_a)
    layer.lora_e[places] = triplets.e.to(layer.lora_e)
    layer.lora_b[:, places] = triplets.b.to(layer.lora_b)
