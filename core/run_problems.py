"""What keeps a run from starting, and what is unwise, each with its field, from config, model card and scan alone.

Plain Python without torch, quick enough to be called at every key stroke of the form.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.adalora_checks import Finding, adalora_advice, adalora_problems
from core.beside import beside_problems, pattern_told
from core.config import (
    AdaLoraConfig,
    AdapterConfig,
    LowRankConfig,
    NoAdapterConfig,
    PatternedConfig,
    RunConfig,
    TargetConfig,
    missing_device,
)
from core.errors import AdapterError
from core.estimate import chosen_targets
from core.events import DataScanned
from core.extra_shapes import extra_problems
from core.fused_parts import chosen_parts, part_rows, parts_advice, parts_problem
from core.method_problems import method_problems
from core.patterns import end_match
from core.records import ModelCard
from core.start_problem import start_problem
from core.targets import experts_advice, experts_problem, rank_of, select_targets

# these look positions up in a table of fixed length; a longer row can not be computed at all
ABSOLUTE_POSITIONS = frozenset({"gpt2", "opt", "gpt_neo", "gpt_bigcode"})


@dataclass(frozen=True)
class Problem:
    """Something about one field. `field` is its dotted path, for example "adapter.rank"."""

    field: str
    message: str
    hint: str = ""


def planned_steps(config: RunConfig, scan: DataScanned) -> int:
    """Optimizer steps of the run: all epochs, or fewer where `max_steps` ends it."""
    training = config.training
    rows = scan.rows - scan.rows_without_supervision
    train_rows = max(rows - round(rows * config.data.validation_fraction), 0)
    steps_an_epoch = math.ceil(train_rows / (training.batch_size * training.gradient_accumulation))
    steps = math.ceil(training.epochs * steps_an_epoch)
    return min(steps, training.max_steps) if training.max_steps else steps


def problems(config: RunConfig, card: ModelCard | None = None, scan: DataScanned | None = None,
             devices: Sequence[str] = (), *, resumed: bool = False) -> list[Problem]:
    """Everything that would make this run fail, each with the path of its field.

    Without a card, a scan or the names of this machine's devices (the best first) only what can be told without them
    is checked. A run that is `resumed` from a checkpoint has its numbers there, so the adapter that it once started
    from may be gone.
    """
    found = []
    if not config.model.path:
        found.append(Problem("model.path", "No base model is chosen.", "Choose one on the Model page."))
    found += _file_problems(config)
    if not resumed:
        found += _start_problems(config, card)
    found += [Problem(*told) for told in method_problems(config, card, devices)]
    found += _rank_choice(config, scan, adalora_problems)
    found += [Problem(*item) for item in extra_problems(config, card.modules if card is not None else None)]
    if not isinstance(config.adapter, NoAdapterConfig):
        found += _layer_range_problems(config.adapter, card)
    if card is not None and not any(problem.field.startswith("adapter.") for problem in found):
        found += _target_problems(config, card)
    if scan is not None:
        found += _scan_problems(config, card, scan)
    if devices and (told := missing_device(config.training.device, devices)):
        found.append(Problem("training.device", *told))
    return found


def _file_problems(config: RunConfig) -> list[Problem]:
    if not config.data.train:
        return [Problem("data.train", "No training data is chosen.", "Choose or drop a file on the Data page.")]
    return [Problem("data.train", f"The file {file} does not exist.", "Choose it again on the Data page.")
            for file in config.data.train if not Path(file).exists()]


def _start_problems(config: RunConfig, card: ModelCard | None) -> list[Problem]:
    problem = start_problem(config, card)
    return [Problem(*problem)] if problem else []


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
        targets = chosen_targets(config, card)
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
    if isinstance(adapter, PatternedConfig) and any(end_match(key, name) for key in adapter.rank_pattern):
        field = "adapter.rank_pattern"
    return Problem(field, message, f"Choose at most {smallest:,}.")


def _scan_problems(config: RunConfig, card: ModelCard | None, scan: DataScanned) -> list[Problem]:
    if scan.problems:
        more = len(scan.problems) - 1
        return [Problem("data.train", scan.problems[0], f"And {more} more." if more else "")]
    if scan.rows == 0:
        return [Problem("data.train", "The dataset has no rows.", "Choose another file.")]
    if scan.supervised_tokens == 0:
        return [Problem("data.train", "No token of this dataset would be trained.",
                        "Raise the maximum length, or learn from all tokens instead of the answers.")]
    found = []
    if planned_steps(config, scan) == 0:
        found.append(Problem("data.validation_fraction", "All rows are held out, none is left to train on.",
                             "Hold out a smaller share."))
    if card is not None:
        found += length_problems(config, card, min(scan.longest, config.data.max_length))
    return found


def length_problems(config: RunConfig, card: ModelCard, row: int) -> list[Problem]:
    """Whether this model can compute a row of so many tokens at all."""
    longest = row + (config.prefix.length if config.prefix is not None else 0)
    if card.model_type not in ABSOLUTE_POSITIONS or not 0 < card.context_length < longest:
        return []
    return [Problem("data.max_length", f"This model can not read more than {card.context_length:,} tokens, "
                    f"the longest row has {longest:,}{' with the prefix' if config.prefix else ''}.",
                    f"Set it to {card.context_length - (longest - row):,} or less.")]


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
