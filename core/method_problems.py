"""What keeps QLoRA and full fine-tuning from working, told before the start. Plain Python, for the form."""

import importlib.util
from collections.abc import Iterator, Sequence

from core.config import AdapterConfig, FullConfig, PatternedConfig, QLoraConfig, RunConfig
from core.records import ModelCard
from core.targets import matches_suffix

Told = tuple[str, str, str]  # field, message, hint
_NEVER_QUANTISED = frozenset({"falcon"})  # its linear layers are of a class that transformers leaves as they are


def method_problems(config: RunConfig, card: ModelCard | None, devices: Sequence[str] = ()) -> list[Told]:
    """(field, message, hint) of everything that the run's method can not do.

    Without the names of this machine's devices, the best first, what they can not do is not told where the run takes
    the best of them.
    """
    adapter = config.adapter
    told = [*_start_problems(adapter, card)] if isinstance(adapter, PatternedConfig) else []
    if isinstance(adapter, QLoraConfig):
        return [*told, *_quantisation_problems(config, adapter, card, devices),
                *_trained_whole_problems(adapter, card)]
    if isinstance(adapter, FullConfig):
        return list(_full_problems(config))
    return told


def _start_problems(adapter: PatternedConfig, card: ModelCard | None) -> Iterator[Told]:
    if adapter.init == "orthogonal" and any(rank % 2 for rank in (adapter.rank, *adapter.rank_pattern.values())):
        yield ("adapter.init", "The orthogonal start splits every rank in two, so ranks must be even.",
               "Choose an even rank, or another start.")
    parted = adapter.takes_from_base and adapter.fused_parts != ("q", "k", "v")
    if parted and any(module.qkv_rows is not None for module in (card.modules if card is not None else ())):
        yield ("adapter.init", f"The start {adapter.init} is taken from whole weights, not from query, key or value "
               "alone.", "Choose all parts of fused layers, or another start.")


def _quantisation_problems(config: RunConfig, adapter: QLoraConfig, card: ModelCard | None,
                           devices: Sequence[str]) -> Iterator[Told]:
    if importlib.util.find_spec("bitsandbytes") is None:  # looked for, not imported
        yield ("adapter.method", "QLoRA needs the package bitsandbytes, which is not installed.",
               "Install it with: pip install bitsandbytes, or choose LoRA.")
    if card is not None and card.model_type in _NEVER_QUANTISED:
        yield ("adapter.method", "This kind of model can not be held in 4 or 8 bits: none of its layers would be "
               "quantised.", "Choose LoRA.")
    if adapter.init in ("pissa", "olora"):
        yield ("adapter.init", f"{'PiSSA' if adapter.init == 'pissa' else 'OLoRA'} changes the base's weights, which "
               "a quantised base can not keep.", "Choose kaiming, or LoRA as the method.")
    device = config.training.device
    if device in ("auto", "all") and devices:
        device = devices[0]
    if adapter.optimizer != "adamw" and device in ("cpu", "mps"):
        yield ("adapter.optimizer", f"The optimizer {adapter.optimizer} needs CUDA, this run computes on {device}.",
               "Choose adamw.")


def _trained_whole_problems(adapter: QLoraConfig, card: ModelCard | None) -> Iterator[Told]:
    """A packed weight can not be trained; what is not quantised can."""
    for module in card.modules if card is not None and adapter.modules_to_save else ():
        packed = module.type in ("Linear", "Conv1D") and not module.is_output_head
        if packed and any(matches_suffix(module.name, name) for name in adapter.modules_to_save):
            yield ("adapter.modules_to_save", f"{module.name} is quantised, so it can not be trained whole.",
                   "Leave it out, or choose LoRA as the method.")
            return


def _full_problems(config: RunConfig) -> Iterator[Told]:
    if config.training.dtype == "bf16":
        yield ("training.dtype", "Full fine-tuning trains the weights in fp32: small steps would be lost in bf16.",
               "Set it to auto or fp32.")
    if config.prefix is not None or config.bottleneck is not None:
        yield ("adapter.method", "Full fine-tuning leaves a whole model, in which a prefix or bottleneck adapters have "
               "no place.", "Leave them out, or choose another method.")


def is_whole(adapter: AdapterConfig) -> bool:
    """True where the run trains the model's own weights and leaves a whole model."""
    return isinstance(adapter, FullConfig)
