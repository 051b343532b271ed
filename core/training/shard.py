"""The frozen weights spread over several GPUs, for a base that does not fit on one (FSDP2, fully_shard).

Only the weights of the decoder layers are spread: each layer's are gathered for its forward and its backward pass
and let go again. What is trained stays whole on every rank and is left to the one all-reduce of
core.training.parallel, so checkpoints and adapter files are those of a run on one GPU; embeddings, norms and the
output layer stay whole too, as the loss reads them without calling their module.
"""

import torch
from transformers import PreTrainedModel

from core.config import RunConfig
from core.errors import CoreError
from core.lora.prefix import body_of
from core.spread import fits_one_gpu, why_not_spread
from core.training.frozen_part import decoder_layers
from core.training.parallel import Ranks


def should_shard(config: RunConfig, ranks: Ranks, device: torch.device, base_bytes: int) -> bool:
    """Whether the base is spread; asked for, or with auto where `base_bytes` are too many for one GPU.

    Raises:
        CoreError: asked for, and it can not be done.
    """
    asked = config.training.parallel
    if not ranks.several or asked == "replicate":
        return False
    if asked == "auto":
        fits = device.type != "cuda" or fits_one_gpu(base_bytes, torch.cuda.mem_get_info(device)[1])
        return ranks.agreed("sharding", lambda: "no" if fits or why_not_spread(config) else "yes") == "yes"
    reason = why_not_spread(config)
    if reason:
        raise CoreError(f"The base can not be spread over the processes: {reason}.",
                        "Set training.parallel to replicate.")
    return True


def shard_base(model: PreTrainedModel, device: torch.device, ranks: Ranks) -> None:
    """Spread the frozen weights of the decoder layers of `model`, which is on the CPU, and put the rest on `device`.

    Raises:
        CoreError: the layers of this family of models are not known.
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - seconds that most runs need not wait
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    layers = decoder_layers(model)
    if layers is None:
        raise CoreError("The base can not be spread over the processes: the layers of this model are not known.",
                        "Set training.parallel to replicate.")
    mesh = init_device_mesh(device.type, (ranks.place.world,))
    inside = {parameter for parameter in layers.parameters() if not parameter.requires_grad}
    whole = {parameter for parameter in model.parameters() if parameter not in inside}
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    # it holds no weights of its own; as the root it lets the next layer's weights come while one computes
    fully_shard(body_of(model), mesh=mesh, ignored_params=whole)
    ranks.sharded = True
