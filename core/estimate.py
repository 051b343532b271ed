"""Parameters, sizes and memory of a run, and its problems, from the config and the model card alone.

Plain Python without torch, quick enough to be called at every key stroke of the form.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from core.adapter_shapes import BYTES, adapter_shapes, file_bytes, trained_parameters
from core.config import RunConfig, TargetConfig
from core.errors import AdapterError
from core.events import DataScanned, ModelCard, ModuleInfo
from core.targets import rank_of, select_targets

OPTIMIZER_BYTES = 16  # fp32 value, gradient and Adam's two moments of one trained parameter
# What the training does is written here, where the estimate of its memory must agree with it.
# Packs: large enough for matrix products near their peak, small enough for a short Stop and little
# memory; one longer row makes a pack of its own.
PACK_TOKENS = 1024
CHUNK_LOGITS = 16 * 2**20  # numbers of the output layer that are held at once: 64 MB in fp32
PROCESS_BYTES = 450_000_000  # Python, torch and the tokenizer
CUDA_CONTEXT_BYTES = 750_000_000
FRAGMENTATION = 0.10
# these look positions up in a table of fixed length; a longer row can not be computed at all
ABSOLUTE_POSITIONS = frozenset({"gpt2", "opt", "gpt_neo", "gpt_bigcode"})


@dataclass(frozen=True)
class Problem:
    """Something about one field. `field` is its dotted path, for example "adapter.rank"."""

    field: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Estimate:
    """What a run will train and need. Memory is by part, in bytes; the rest is exact."""

    trainable_parameters: int
    total_parameters: int
    adapter_bytes: int
    targets: tuple[ModuleInfo, ...]
    memory: dict[str, int] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Trained parameters as a share of all of the base model's."""
        return self.trainable_parameters / self.total_parameters if self.total_parameters else 0.0

    @property
    def memory_bytes(self) -> int:
        """The peak: all parts together."""
        return sum(self.memory.values())


def estimate(config: RunConfig, card: ModelCard, scan: DataScanned | None = None) -> Estimate:
    """Count parameters exactly and memory approximately; with a scan the row lengths are the real ones.

    Raises:
        AdapterError: the target layers match nothing.
    """
    targets = select_targets(card.modules, config.adapter)
    trainable = trained_parameters(targets, config.adapter)
    dtype, dtype_words = _computing_dtype(config)
    tokens = _tokens_at_once(config, scan)
    memory = {
        "weights": card.parameters * BYTES[dtype],
        "adapter and optimizer": trainable * OPTIMIZER_BYTES,
        "activations": tokens * _activation_bytes(card, targets, dtype),
        "output layer": min(tokens * card.vocabulary, CHUNK_LOGITS) * 8,
        "program": PROCESS_BYTES + (CUDA_CONTEXT_BYTES if config.training.device.startswith("cuda") else 0),
    }
    memory["reserve"] = round(FRAGMENTATION * sum(memory.values()))
    return Estimate(
        trainable_parameters=trainable,
        total_parameters=card.parameters,
        adapter_bytes=file_bytes(adapter_shapes(targets, config.adapter), config.adapter.save_dtype),
        targets=tuple(targets),
        memory=memory,
        assumptions=(dtype_words, f"At most {tokens:,} tokens are computed at once.",
                     "The output layer is computed in pieces."),
    )


def _computing_dtype(config: RunConfig) -> tuple[str, str]:
    if config.training.dtype != "auto":
        return config.training.dtype, f"The base is held in {config.training.dtype}."
    if config.training.device.startswith("cuda"):
        return "bf16", "The base is held in bf16, as GPUs compute it fastest."
    return "fp32", "The base is held in fp32; with bf16 it needs half."


def _tokens_at_once(config: RunConfig, scan: DataScanned | None) -> int:
    """Tokens of the largest pack; without a scan every row is taken to be of the maximum length."""
    limit = config.data.max_length
    longest = min(scan.longest, limit) if scan is not None and scan.rows else limit
    return max(longest, min(PACK_TOKENS, config.training.batch_size * longest))


def _activation_bytes(card: ModelCard, targets: list[ModuleInfo], dtype: str) -> int:
    """Bytes a token leaves behind for the backward pass, in all layers from the lowest adapted one up."""
    lowest = min((module.layer for module in targets), default=0)
    layers = card.layers - max(lowest, 0)
    width = card.hidden_size
    heads = max(card.attention_heads, 1)
    key_value_width = width * card.key_value_heads // heads if card.key_value_heads else width
    inner = card.intermediate_size or 4 * width
    if dtype == "fp32":
        return layers * 4 * (6 * width + 2 * key_value_width + 4 * inner)
    return layers * 2 * (8 * width + 2 * key_value_width + 4 * inner)


def planned_steps(config: RunConfig, scan: DataScanned) -> int:
    """Optimizer steps of the run: all epochs, or fewer where `max_steps` ends it."""
    training = config.training
    rows = scan.rows - scan.rows_without_supervision
    train_rows = max(rows - round(rows * config.data.validation_fraction), 0)
    steps_an_epoch = math.ceil(train_rows / (training.batch_size * training.gradient_accumulation))
    steps = math.ceil(training.epochs * steps_an_epoch)
    return min(steps, training.max_steps) if training.max_steps else steps


def problems(config: RunConfig, card: ModelCard | None = None, scan: DataScanned | None = None) -> list[Problem]:
    """Everything that would make this run fail, each with the path of its field.

    Without a card or a scan only what can be told without them is checked.
    """
    found = []
    if not config.model.path:
        found.append(Problem("model.path", "No base model is chosen.", "Choose one on the Model page."))
    found += _file_problems(config)
    found += _layer_range_problems(config.adapter, card)
    if card is not None and not any(problem.field.startswith("adapter.") for problem in found):
        found += _target_problems(config, card)
    if scan is not None:
        found += _scan_problems(config, card, scan)
    return found


def _file_problems(config: RunConfig) -> list[Problem]:
    if not config.data.train:
        return [Problem("data.train", "No training data is chosen.", "Choose or drop a file on the Data page.")]
    return [Problem("data.train", f"The file {file} does not exist.", "Choose it again on the Data page.")
            for file in config.data.train if not Path(file).exists()]


def _layer_range_problems(adapter: TargetConfig, card: ModelCard | None) -> list[Problem]:
    if adapter.last_layer is not None and adapter.first_layer > adapter.last_layer:
        return [Problem("adapter.first_layer", f"The first layer ({adapter.first_layer}) is above the last one "
                        f"({adapter.last_layer}).", "Make it smaller.")]
    if card is not None and card.layers and adapter.first_layer >= card.layers:
        return [Problem("adapter.first_layer", f"This model has {card.layers} layers, counted from 0 to "
                        f"{card.layers - 1}.", f"Choose at most {card.layers - 1}.")]
    return []


def _target_problems(config: RunConfig, card: ModelCard) -> list[Problem]:
    try:
        targets = select_targets(card.modules, config.adapter)
    except AdapterError as error:
        return [Problem("adapter.target_modules", error.message, error.hint)]
    for module in targets:
        smallest = min(module.in_features, module.out_features)
        if rank_of(module.name, config.adapter) > smallest:
            return [Problem("adapter.rank", f"The target layer {module.name} is only {smallest:,} wide; a higher rank "
                            "can add nothing there.", f"Choose at most {smallest:,}.")]
    return []


def _scan_problems(config: RunConfig, card: ModelCard | None, scan: DataScanned) -> list[Problem]:
    if scan.rows == 0:
        return [Problem("data.train", "The dataset has no rows.", "Choose another file.")]
    if scan.supervised_tokens == 0:
        return [Problem("data.train", "No token of this dataset would be trained.",
                        "Raise the maximum length, or learn from all tokens instead of the answers.")]
    found = []
    if planned_steps(config, scan) == 0:
        found.append(Problem("data.validation_fraction", "All rows are held out, none is left to train on.",
                             "Hold out a smaller share."))
    longest = min(scan.longest, config.data.max_length)
    if card is not None and card.model_type in ABSOLUTE_POSITIONS and 0 < card.context_length < longest:
        found.append(Problem("data.max_length", f"This model can not read more than {card.context_length:,} tokens, "
                             f"the longest row has {longest:,}.", f"Set it to {card.context_length:,} or less."))
    return found


def advice(config: RunConfig, card: ModelCard | None = None, scan: DataScanned | None = None) -> list[Problem]:
    """What is unwise but works; shown at the field, it keeps nothing from starting."""
    found = []
    if card is not None:
        found += _model_advice(config, card)
    if scan is not None and scan.rows:
        steps = planned_steps(config, scan)
        if 0 < steps <= config.training.warmup_steps:
            found.append(Problem("training.warmup_steps", f"The whole run has {steps:,} steps, so the learning rate "
                                 "never gets to its full height.", f"About {max(steps // 10, 1)} would fit."))
    return found


def _model_advice(config: RunConfig, card: ModelCard) -> list[Problem]:
    found = []
    if 0 < card.context_length < config.data.max_length and card.model_type not in ABSOLUTE_POSITIONS:
        found.append(Problem("data.max_length", f"The model was made for at most {card.context_length:,} tokens.",
                             "Longer rows are learned badly."))
    return found
