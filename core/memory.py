"""The most memory that a training step needs, by part, from the config and the model card alone. Plain Python.

A step has two moments at which most is held. "Computing" is where the forward pass has just ended: all activations,
and the piece of the output layer that is at work. "Updating" is where all gradients are there and the optimizer
works through them. The parts that are told are those of the moment that needs more. Where a step needs less than the
loading before it, at which the model's file is there beside the weights that are made of it, the rest is overhead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.adalora_checks import method_bytes
from core.adapter_shapes import BYTES, start_numbers
from core.base_memory import dequantised_bytes, weight_bytes
from core.beside import trained_whole
from core.config import FullConfig, QLoraConfig, RunConfig
from core.kept_activations import Pass, kept_bytes
from core.records import ModelCard, ModuleInfo
from core.spread import share_bytes

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "output layer", "overhead")
# Resident bytes of a run of a model of a few kilobytes, and the working memory of matrix products of a usual size
PROCESS_BYTES = 450_000_000
VOCABULARY_BYTES = 950  # of the tokenizer, for each entry
QUANTISER_BYTES = 50_000_000  # bitsandbytes
CUDA_CONTEXT_BYTES = 750_000_000
# Between blocks that come and go the C library leaves gaps that do not fit the next ones. In the first passes they
# grow to a good half of what a pass keeps (LoRA on the starter, passes of 128 to 4,096 tokens), and then stay.
GAPS = 0.55
GAPS_ON_CUDA = 0.10  # torch's own allocator there
_FP32 = BYTES["fp32"]
VOCABULARY_BLOCK = 768  # tokens of the vocabulary at once, behind a frozen output layer in fp32 on the CPU
_LOGIT_BYTES = 2 * _FP32  # a logit, and its exponential while they are summed


@dataclass(frozen=True)
class Trained:
    """What is trained: the modules, how many numbers, and the lowest layer in which some are."""

    targets: Sequence[ModuleInfo]
    numbers: int
    lowest: int


@dataclass(frozen=True)
class Work:
    """How a step is computed: the number type of the base, the largest pass, whether it is one of several in a step,
    how many logits are there at once, whether that is on a GPU with CUDA, and over how many the base is spread."""

    dtype: str
    once: Pass
    several: bool
    logits: int
    on_cuda: bool
    gpus: int = 1


def memory_parts(config: RunConfig, card: ModelCard, trained: Trained, work: Work) -> dict[str, int]:
    """Bytes by the names of PARTS; together they are the peak."""
    full = isinstance(config.adapter, FullConfig)
    held = {
        "weights": share_bytes(card, work.dtype, work.gpus) if work.gpus > 1
        else weight_bytes(card, config.adapter, work.dtype),
        "adapter": 0 if full else _FP32 * trained.numbers,  # otherwise they are the weights themselves
        "optimizer": _optimizer_bytes(config, trained.numbers),
    }
    starts = _FP32 * start_numbers(trained.targets, config.adapter)
    gradients = _FP32 * trained.numbers
    computing = {
        **held,
        "adapter": held["adapter"] + 3 * starts,  # themselves, and joined to what is trained, which doubles it
        "gradients": gradients if work.several else 0,
        "activations": kept_bytes(config, card, trained.targets, trained.lowest, work.dtype, work.once)
        + dequantised_bytes(card, config.adapter, work.dtype),
        "output layer": _output_bytes(config, card, trained.targets, work),
    }
    updating = {**held, "adapter": held["adapter"] + starts, "gradients": gradients}  # which is done in place
    computing["overhead"] = round((GAPS_ON_CUDA if work.on_cuda else GAPS) * computing["activations"])
    most = max(computing, updating, key=lambda parts: sum(parts.values()))
    loading = held["weights"] + (0 if work.on_cuda else _file_bytes(config, card, work.dtype))
    most["overhead"] = most.get("overhead", 0) + max(loading - sum(most.values()), 0)
    most["overhead"] += _program_bytes(config, card, work.on_cuda)
    return {part: most.get(part, 0) for part in PARTS}


def corrected(parts: Mapping[str, int], difference: int) -> dict[str, int]:
    """The parts with what a measurement found more, or less, than was told: in the overhead, and where that is not
    enough, in the activations."""
    overhead = parts["overhead"] + difference
    return {**parts, "overhead": max(overhead, 0), "activations": max(parts["activations"] + min(overhead, 0), 0)}


def _optimizer_bytes(config: RunConfig, numbers: int) -> int:
    """Adam's two moments, in fp32 or in one byte each, and what AdaLoRA keeps besides."""
    small = isinstance(config.adapter, QLoraConfig) and config.adapter.optimizer == "adamw-8bit"
    return ((2 if small else 2 * _FP32) + method_bytes(config.adapter)) * numbers


def _output_bytes(config: RunConfig, card: ModelCard, targets: Sequence[ModuleInfo], work: Work) -> int:
    """What the output layer needs besides, or the top layer's gradients where that is more, as both do not meet."""
    size = BYTES[work.dtype]
    adapted = {module.name for module in targets} if isinstance(config.adapter, FullConfig) else set()
    whole = adapted | {each.module for each in trained_whole(card.modules, targets, config.adapter)}
    learns = any(module.name in whole for module in card.modules
                 if module.is_output_head or (card.tied_embeddings and module.is_input_embedding))
    of_head = card.vocabulary * card.hidden_size * size if learns else 0  # and once more when the backward scales it
    inner = card.intermediate_size or 4 * card.hidden_size
    of_layer = 4 * work.once.tokens * (inner + card.hidden_size) * size
    in_one_pass = not learns and not work.on_cuda and work.dtype == "fp32"
    logits = work.once.tokens * min(VOCABULARY_BLOCK, card.vocabulary) if in_one_pass else work.logits
    return max(logits * _LOGIT_BYTES + of_head, 2 * of_head, of_layer)


def _file_bytes(config: RunConfig, card: ModelCard, dtype: str) -> int:
    """Of the model's file where the weights are made of it; where they have its type they are the file itself."""
    itself = card.dtype == dtype and not isinstance(config.adapter, QLoraConfig)
    return 0 if itself else card.bytes_on_disk


def _program_bytes(config: RunConfig, card: ModelCard, on_cuda: bool) -> int:
    """What is there without a model; on a GPU only what the GPU itself holds counts."""
    if on_cuda:
        return CUDA_CONTEXT_BYTES
    quantiser = QUANTISER_BYTES if isinstance(config.adapter, QLoraConfig) else 0
    return PROCESS_BYTES + VOCABULARY_BYTES * card.vocabulary + quantiser
