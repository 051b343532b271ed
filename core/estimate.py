"""Parameters, sizes and memory of a run, and its problems, from the config and the model card alone.

Plain Python without torch, quick enough to be called at every key stroke of the form.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.adalora_checks import Finding, adalora_advice, adalora_problems, method_words
from core.adapter_shapes import BYTES, adapter_shapes, file_bytes
from core.base_memory import trained_numbers
from core.beside import beside_parameters, beside_problems, beside_shapes, pattern_told
from core.config import (
    AdaLoraConfig,
    AdapterConfig,
    FullConfig,
    LowRankConfig,
    NoAdapterConfig,
    PatternedConfig,
    QLoraConfig,
    RunConfig,
    TargetConfig,
)
from core.errors import AdapterError
from core.events import DataScanned
from core.extra_shapes import (
    extra_files,
    extra_parameters,
    extra_problems,
    lowest_extra_layer,
)
from core.fused_parts import chosen_parts, part_rows, parts_advice, parts_problem
from core.kept_activations import Pass
from core.memory import Trained, Work, corrected, memory_parts
from core.method_problems import method_problems
from core.records import ModelCard, ModuleInfo
from core.start import start_problem
from core.targets import experts_advice, experts_problem, rank_of, select_targets

# What the training does is written here, where the estimate of its memory must agree with it.
# Packs: large enough for matrix products near their peak, small enough for a short Stop and little
# memory; one longer row makes a pack of its own.
PACK_TOKENS = 1024
CHUNK_LOGITS = 16 * 2**20  # numbers of the output layer that are held at once: 64 MB in fp32
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
    checkpoint_bytes: int = 0  # of one; some of them are kept

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
    targets = _targets(config, card)
    trainable = trained_numbers(card, targets, config.adapter) + extra_parameters(config, card.modules) \
        + beside_parameters(card.modules, targets, config.adapter)
    dtype, dtype_words = _computing_dtype(config)
    once = largest_pass(config, scan)
    work = Work(dtype, once, several=_several_passes(config, once), on_cuda=config.training.on_cuda,
                logits=min(once.tokens * card.vocabulary, CHUNK_LOGITS))
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
                     "The output layer is computed in pieces.", *method_words(targets, config.adapter)),
    )


def measured(found: Estimate, difference: int) -> Estimate:
    """The estimate as a fit probe corrects it, which found `difference` bytes more than was estimated."""
    words = "Corrected by a step that was measured."
    return replace(found, memory=corrected(found.memory, difference), assumptions=(*found.assumptions, words))


def _targets(config: RunConfig, card: ModelCard) -> list[ModuleInfo]:
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


def _held_dtype(config: RunConfig) -> tuple[str, str]:
    if config.training.dtype != "auto":
        return config.training.dtype, f"The base is held in {config.training.dtype}."
    if config.training.on_cuda:
        return "bf16", "The base is held in bf16, as GPUs compute it fastest."
    return "fp32", "The base is held in fp32; with bf16 it needs half."


def largest_pass(config: RunConfig, scan: DataScanned | None = None) -> Pass:
    """What is computed at once at most; without a scan every row is taken to be of the maximum length."""
    limit = config.data.max_length
    longest = min(scan.longest, limit) if scan is not None and scan.rows else limit
    tokens = max(longest, min(PACK_TOKENS, config.training.batch_size * longest))
    return Pass(tokens, longest, config.training.packing != "off")


def _several_passes(config: RunConfig, once: Pass) -> bool:
    """True where a step adds up the gradients of more than one pass."""
    training = config.training
    return training.gradient_accumulation > 1 or training.batch_size * once.longest > once.tokens


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
    found += _start_problems(config)
    found += [Problem(*told) for told in method_problems(config, card)]
    found += _rank_choice(config, scan, adalora_problems)
    found += [Problem(*item) for item in extra_problems(config, card.modules if card is not None else None)]
    if not isinstance(config.adapter, NoAdapterConfig):
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


def _start_problems(config: RunConfig) -> list[Problem]:
    problem = start_problem(config.adapter) if isinstance(config.adapter, PatternedConfig) else None
    return [Problem(f"adapter.{problem[0]}", problem[1], problem[2])] if problem else []


def _rank_choice(config: RunConfig, scan: DataScanned | None,
                 look: Callable[[AdaLoraConfig, int], list[Finding]]) -> list[Problem]:
    if not isinstance(config.adapter, AdaLoraConfig):
        return []
    steps = planned_steps(config, scan) if scan is not None else 0
    return [Problem(f"adapter.{name}", message, hint) for name, message, hint in look(config.adapter, steps)]


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
        targets = _targets(config, card)
    except AdapterError as error:
        return [Problem("adapter.target_modules", error.message, error.hint)]
    if not isinstance(config.adapter, LowRankConfig):
        return []
    told = parts_problem(targets, config.adapter) or experts_problem(targets, config.adapter) \
        or pattern_told(targets, config.adapter)
    if told is not None:
        return [Problem(f"adapter.{told[0]}", *told[1:])]
    for module in targets:
        smallest = min(module.in_features, module.out_features,
                       *part_rows(module, chosen_parts(module, config.adapter)))
        if rank_of(module.name, config.adapter) > smallest:
            return [_rank_problem(config.adapter, module.name, smallest)]
    return [Problem(*found) for found in beside_problems(card.modules, targets, config.adapter)]


def _rank_problem(adapter: TargetConfig, name: str, smallest: int) -> Problem:
    message = f"The target layer {name} is only {smallest:,} wide; a higher rank can add nothing there."
    if isinstance(adapter, AdaLoraConfig) and adapter.initial_rank is None:
        return Problem("adapter.rank", f"{message} AdaLoRA starts with {adapter.first_rank:,}.",
                       f"Choose at most {max(2 * smallest // 3, 1):,}, or an initial rank of at most {smallest:,}.")
    field = "adapter.initial_rank" if isinstance(adapter, AdaLoraConfig) else "adapter.rank"
    return Problem(field, message, f"Choose at most {smallest:,}.")


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
    row = min(scan.longest, config.data.max_length)
    longest = row + (config.prefix.length if config.prefix is not None else 0)
    if card is not None and card.model_type in ABSOLUTE_POSITIONS and 0 < card.context_length < longest:
        found.append(Problem("data.max_length", f"This model can not read more than {card.context_length:,} tokens, "
                             f"the longest row has {longest:,}{' with the prefix' if config.prefix else ''}.",
                             f"Set it to {card.context_length - (longest - row):,} or less."))
    return found


def advice(config: RunConfig, card: ModelCard | None = None, scan: DataScanned | None = None) -> list[Problem]:
    """What is unwise but works; shown at the field, it keeps nothing from starting."""
    found = []
    if card is not None:
        found += _model_advice(config, card)
        found += _layer_advice(config.adapter, card)
    found += _rank_choice(config, scan, adalora_advice)
    if scan is not None and scan.rows:
        steps = planned_steps(config, scan)
        if 0 < steps <= config.training.warmup_steps:
            found.append(Problem("training.warmup_steps", f"The whole run has {steps:,} steps, so the learning rate "
                                 "never gets to its full height.", f"About {max(steps // 10, 1)} would fit."))
    return found


def _layer_advice(adapter: AdapterConfig, card: ModelCard) -> list[Problem]:
    """What the chosen layers make of this model's fused projections and experts."""
    if not isinstance(adapter, LowRankConfig):
        return []
    try:
        targets = select_targets(card.modules, adapter)
    except AdapterError:
        return []  # a problem, told there
    told = [parts_advice(targets, adapter), experts_advice(card.modules, adapter)]
    return [Problem(f"adapter.{name}", *words) for name, *words in filter(None, told)]


def _model_advice(config: RunConfig, card: ModelCard) -> list[Problem]:
    found = []
    if 0 < card.context_length < config.data.max_length and card.model_type not in ABSOLUTE_POSITIONS:
        found.append(Problem("data.max_length", f"The model was made for at most {card.context_length:,} tokens.",
                             "Longer rows are learned badly."))
    return found
