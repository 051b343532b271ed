"""Whether the frozen weights are spread over several GPUs, and what each of them then holds. Plain Python."""

from collections.abc import Sequence

from core.adapter_shapes import BYTES
from core.config import FullConfig, QLoraConfig, RunConfig
from core.records import ModelCard

_LARGEST_SHARE = 0.7  # of a GPU's memory for the frozen weights; the rest is for the step
_GATHERED = 2  # layers that are whole at once: one computes, the next one's weights come


def why_not_spread(config: RunConfig) -> str:
    """What stands against it, as a part of a sentence; empty where nothing does."""
    if isinstance(config.adapter, QLoraConfig):
        return "a quantised base is held whole"
    if isinstance(config.adapter, FullConfig):
        return "full fine-tuning trains the base itself"
    return ""


def fits_one_gpu(base_bytes: int, gpu_bytes: int) -> bool:
    """Whether a GPU of so much memory holds the base and has room for a step."""
    return base_bytes <= _LARGEST_SHARE * gpu_bytes


def spread_over(config: RunConfig, base_bytes: int, gpus: Sequence[int]) -> int:
    """Over how many GPUs the base is spread; 1 where each holds it whole.

    Args:
        config: of the run.
        base_bytes: the frozen weights.
        gpus: the memory of each GPU that trains.
    """
    asked = config.training.parallel
    if len(gpus) < 2 or asked == "replicate" or why_not_spread(config):
        return 1
    return len(gpus) if asked == "shard" or not fits_one_gpu(base_bytes, min(gpus)) else 1


def share_bytes(card: ModelCard, dtype: str, gpus: int) -> int:
    """What each of `gpus` GPUs holds of the base: its part of the layers, those at work, and all that is no layer."""
    layers = BYTES[dtype] * sum(module.parameters for module in card.modules if module.layer >= 0)
    at_work = _GATHERED * layers // max(card.layers, 1)
    return BYTES[dtype] * card.parameters - layers + min(layers // gpus + at_work, layers)
