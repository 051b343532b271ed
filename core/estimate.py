"""Parameters, sizes and memory of a run from the config and the model card alone.

Plain Python without torch, quick enough to be called at every key stroke of the form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from core.adalora_checks import method_words
from core.adapter_shapes import BYTES, adapter_shapes, file_bytes
from core.base_memory import trained_numbers, weight_bytes
from core.beside import beside_parameters, beside_shapes
from core.config import FullConfig, NoAdapterConfig, QLoraConfig, RunConfig
from core.events import DataScanned
from core.extra_shapes import extra_files, extra_parameters, lowest_extra_layer
from core.kept_activations import Pass
from core.memory import Trained, Work, corrected, memory_parts
from core.records import ModelCard, ModuleInfo
from core.spread import spread_over
from core.targets import select_targets

# What the training does is written here, where the estimate of its memory must agree with it.
# Packs: large enough for matrix products near their peak, small enough for a short Stop and little memory; one longer
# row makes a pack of its own. On two cores a step of packs of 640 tokens was 2 % and of 1,024 4 % faster than of 512;
# 640 leave the peak memory of the starter model below a fifth of what peft with the Trainer takes.
PACK_TOKENS = 640
PACK_TOKENS_ON_CUDA = 1024
_SHORT_ROWS = 0.1  # of all: enough of them to fill what longer ones leave of a pass
_FILLED = 0.9  # of a device's memory is taken at most before layers are computed twice
CHUNK_LOGITS = 16 * 2**20  # numbers of the output layer that are held at once: 64 MB in fp32


@dataclass(frozen=True)
class Estimate:
    """What a run will train and need. Memory is by part, in bytes; the rest is exact."""

    trainable_parameters: int
    total_parameters: int
    adapter_bytes: int
    targets: tuple[ModuleInfo, ...]
    memory: dict[str, int] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    checkpoint_bytes: int = 0  # of one; some of them are kept

    @property
    def share(self) -> float:
        """Trained parameters as a share of all of the base model's."""
        return self.trainable_parameters / self.total_parameters if self.total_parameters else 0.0

    @property
    def memory_bytes(self) -> int:
        """The peak: all parts together."""
        return sum(self.memory.values())


def estimate(config: RunConfig, card: ModelCard, scan: DataScanned | None = None, gpus: int = 1) -> Estimate:
    """Count parameters exactly and memory approximately, of one GPU where there are several.

    Args:
        config: of the run, on its device.
        card: its base.
        scan: of its data; with it the row lengths are the real ones.
        gpus: over so many the base is spread.

    Raises:
        AdapterError: the target layers match nothing.
    """
    targets = chosen_targets(config, card)
    trainable = trained_numbers(card, targets, config.adapter) + extra_parameters(config, card.modules) \
        + beside_parameters(card.modules, targets, config.adapter)
    dtype, dtype_words = _computing_dtype(config)
    once = largest_pass(config, scan)
    work = Work(dtype, once, several=_several_passes(config, once), on_cuda=config.training.on_cuda,
                logits=min(once.tokens * card.vocabulary, CHUNK_LOGITS), gpus=gpus)
    memory = memory_parts(config, card, Trained(targets, trainable, lowest_layer(config, targets)), work)
    adapter_bytes = _adapter_bytes(config, card, targets)
    # the trained numbers with their two moments, and an adapter's own files, all in fp32
    own_files = 0 if isinstance(config.adapter, FullConfig) else adapter_bytes
    return Estimate(
        trainable_parameters=trainable,
        total_parameters=card.parameters,
        adapter_bytes=adapter_bytes,
        checkpoint_bytes=12 * trainable + own_files,
        targets=tuple(targets),
        memory=memory,
        assumptions=(dtype_words, f"At most {once.tokens:,} tokens are computed at once.",
                     "The output layer is computed in pieces.", *_twice(config), *_spread_words(gpus),
                     *method_words(targets, config.adapter)),
    )


def on_device(config: RunConfig, devices: Sequence[str]) -> RunConfig:
    """The run with the device that it would take of `devices`, the best first, for `auto` and `all`.

    A GPU holds the base in another type, takes longer packs, and has its own memory.
    """
    best = next(iter(devices), "auto")
    device = {"auto": best, "all": best, "cuda": "cuda:0"}.get(config.training.device, config.training.device)
    return config.model_copy(update={"training": config.training.model_copy(update={"device": device})})


def spread_here(config: RunConfig, card: ModelCard, devices: Mapping[str, int]) -> int:
    """Over how many GPUs of this machine the run spreads its base; `devices` with their memory, the best first."""
    gpus = [memory for name, memory in devices.items() if name.startswith("cuda")]
    dtype, _ = _computing_dtype(on_device(config, list(devices)))
    return spread_over(config, weight_bytes(card, config.adapter, dtype),
                       gpus if config.training.device == "all" else ())


def with_checkpointing(config: RunConfig, card: ModelCard, memory_bytes: int, scan: DataScanned | None = None,
                       gpus: int = 1) -> RunConfig:
    """The run with activation checkpointing on or off in the place of auto: on where it would not fit otherwise.

    Args:
        config: the run on the device that it takes.
        card: its base.
        memory_bytes: of that device, for this run.
        scan: of its data.
        gpus: over so many the base is spread.

    Raises:
        AdapterError: the target layers match nothing.
    """
    if config.training.activation_checkpointing != "auto":
        return config
    fits = estimate(config, card, scan, gpus).memory_bytes <= _FILLED * memory_bytes
    training = config.training.model_copy(update={"activation_checkpointing": "off" if fits else "on"})
    return config.model_copy(update={"training": training})


def measured(found: Estimate, difference: int) -> Estimate:
    """The estimate as a fit probe corrects it, which found `difference` bytes more than was estimated."""
    words = "Corrected by a step that was measured."
    return replace(found, memory=corrected(found.memory, difference), assumptions=(*found.assumptions, words))


def chosen_targets(config: RunConfig, card: ModelCard) -> list[ModuleInfo]:
    """The modules that are adapted. Raises AdapterError where they match nothing."""
    return [] if isinstance(config.adapter, NoAdapterConfig) else select_targets(card.modules, config.adapter)


def _adapter_bytes(config: RunConfig, card: ModelCard, targets: list[ModuleInfo]) -> int:
    """Of the tensors in the folder that a run leaves, and its sub-folders."""
    if isinstance(config.adapter, FullConfig):  # the whole model
        return card.parameters * BYTES[config.adapter.save_dtype]
    contents = [adapter_shapes(targets, config.adapter) | beside_shapes(card.modules, targets, config.adapter),
                *extra_files(config, card.modules)]
    return sum(file_bytes(shapes, config.adapter.save_dtype) for shapes in contents if shapes)


def lowest_layer(config: RunConfig, targets: list[ModuleInfo]) -> int:
    """Gradients go down to here."""
    extra = lowest_extra_layer(config)
    return min([module.layer for module in targets] + ([] if extra is None else [extra]), default=0)


def _computing_dtype(config: RunConfig) -> tuple[str, str]:
    if isinstance(config.adapter, FullConfig):
        return "fp32", "The weights are held and trained in fp32."
    dtype, words = _held_dtype(config)
    if isinstance(config.adapter, QLoraConfig):
        return dtype, f"The linear layers are held in {config.adapter.quantisation} and computed in {dtype}."
    return dtype, words


def _twice(config: RunConfig) -> list[str]:
    on = config.training.activation_checkpointing == "on"
    return ["Layers are computed a second time for the backward pass."] if on else []


def _spread_words(gpus: int) -> list[str]:
    return [f"The weights of the layers are spread over {gpus} GPUs."] if gpus > 1 else []


def _held_dtype(config: RunConfig) -> tuple[str, str]:
    if config.training.dtype != "auto":
        return config.training.dtype, f"The base is held in {config.training.dtype}."
    if config.training.on_cuda:
        return "bf16", "The base is held in bf16, as GPUs compute it fastest."
    return "fp32", "The base is held in fp32; with bf16 it needs half."


def largest_pass(config: RunConfig, scan: DataScanned | None = None) -> Pass:
    """What is computed at once at most; without a scan every row may have any length up to the maximum."""
    limit = config.data.max_length
    longest = min(scan.longest, limit) if scan is not None and scan.rows else limit
    most = pack_tokens(config.training.on_cuda)
    rows = most // max(longest, 1)  # of the longest
    if scan is not None and (rows + 1) * (_short_row(scan, longest) - 1) > most:  # one more has no room in a pass
        most = rows * longest
    tokens = max(longest, min(most, config.training.batch_size * longest))
    return Pass(tokens, longest, config.training.packing != "off")


def _short_row(scan: DataScanned, longest: int) -> int:
    """The length that only the shorter rows of a dataset do not reach, at least; 0 where that is not known."""
    passed, bins = 0, len(scan.length_counts)
    for number, count in enumerate(scan.length_counts):
        passed += count
        if passed > _SHORT_ROWS * sum(scan.length_counts):
            return min(number * scan.longest // bins, longest)
    return 0


def pack_tokens(on_cuda: bool) -> int:
    """How many tokens one pass has at most, but for a longer row."""
    return PACK_TOKENS_ON_CUDA if on_cuda else PACK_TOKENS


def _several_passes(config: RunConfig, once: Pass) -> bool:
    """True where a step adds up the gradients of more than one pass."""
    training = config.training
    return training.gradient_accumulation > 1 or training.batch_size * once.longest > once.tokens
