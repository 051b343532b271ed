"""The one configuration of a run. A hyper-parameter is declared here and nowhere else.

From these models come the form, the CLI's `--set`, run.toml, the saved metadata and the
comparison of runs. Field metadata beyond pydantic's own lives in `json_schema_extra`:
`group` (heading in the form), `unit`, `more` (folded away at first), `choices_text`.
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from core.errors import ConfigError

STARTER = "starter"  # the name of the model that comes along; a folder called so is ./starter
TARGET_PRESETS = ("all-linear", "attention", "q-v")

_DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _short_dtype(value: Any) -> Any:
    return _DTYPE_NAMES.get(value, value) if isinstance(value, str) else value


Dtype = Annotated[Literal["auto", "fp32", "bf16"], BeforeValidator(_short_dtype)]
SaveDtype = Annotated[Literal["fp32", "bf16", "fp16"], BeforeValidator(_short_dtype)]


def option(default: Any, title: str, description: str, *, group: str = "", unit: str = "",
           more: bool = False, **limits: Any) -> Any:
    """A config field: its default, words, limits and place in the form, in one declaration."""
    extra = {"group": group, "unit": unit, "more": more}
    return Field(default, title=title, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """A frozen table of run.toml that refuses unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """Which base model is adapted."""

    path: str = option(
        "", "Base model",
        "A model folder, a name in the model library, or 'starter' for the model that comes along.",
        group="Model",
    )


class DataConfig(Section):
    """Which rows are learned from and how they are cut."""

    train: tuple[str, ...] = option(
        (), "Training files", "Files of conversations, instructions or plain text.", group="Data")
    validation_fraction: float = option(
        0.05, "Held out", "Share of the rows kept aside, by the seed, to measure the validation loss.",
        group="Data", ge=0.0, le=0.5)
    max_length: int = option(
        512, "Maximum length", "Rows longer than this are cut at the end; the Data page counts them.",
        group="Data", unit="tokens", ge=8, le=131072)
    train_on: Literal["answers", "all"] = option(
        "answers", "Learn from",
        "Answers: the loss counts only what the assistant says. All: every token counts.", group="Data")

    @field_validator("train", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class LoraConfig(Section):
    """Low-rank adaptation: h = W x + (alpha/rank) B A x (arXiv 2106.09685)."""

    method: Literal["lora"] = option(
        "lora", "Method", "LoRA trains two small matrices beside each chosen layer.", group="Adapter")
    rank: int = option(
        8, "Rank", "How much the adapter can learn: the inner dimension r of the update B·A. 8 is a good start.",
        group="Adapter", ge=1, le=1024)
    alpha: float = option(
        16.0, "Alpha", "How strongly the update counts: it is scaled by alpha / rank. Twice the rank is usual.",
        group="Adapter", gt=0.0, le=4096.0)
    dropout: float = option(
        0.0, "Dropout", "Share of the adapter's input dropped at random in training; helps on little data.",
        group="Adapter", ge=0.0, lt=1.0)
    target_modules: str | tuple[str, ...] = option(
        "all-linear", "Target layers",
        "A preset (all-linear, attention, q-v), a list of module names or suffixes, or a regular expression.",
        group="Adapter")
    first_layer: int = option(
        0, "First layer", "Layers below this one stay as they are; training is then faster.",
        group="Adapter", more=True, ge=0, le=10000)
    last_layer: int | None = option(
        None, "Last layer", "Layers above this one stay as they are; empty means the top.",
        group="Adapter", more=True, ge=0, le=10000)
    save_dtype: SaveDtype = option(
        "fp32", "Saved as", "Number type of the adapter file; fp32 is exact, 16-bit is half the size.",
        group="Adapter", more=True)

    @field_validator("target_modules")
    @classmethod
    def _target_is_usable(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("choose at least one target layer")
        if isinstance(value, str) and value not in TARGET_PRESETS:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"neither a preset nor a valid regular expression ({error})") from None
        return value


# The union of all methods, told apart by `method`.
AdapterConfig = LoraConfig


class TrainingConfig(Section):
    """How the adapter is trained."""

    epochs: float = option(
        3.0, "Epochs", "How often every row is seen.", group="Learning", gt=0.0, le=1000.0)
    max_steps: int = option(
        0, "Stop after", "Ends the run after so many steps; 0 means all epochs.",
        group="Learning", unit="steps", more=True, ge=0)
    batch_size: int = option(
        8, "Batch size", "Rows learned from at once. Smaller needs less memory.",
        group="Learning", unit="rows", ge=1, le=4096)
    gradient_accumulation: int = option(
        1, "Accumulate", "Batches added up before the adapter is changed once.",
        group="Learning", unit="batches", more=True, ge=1, le=4096)
    learning_rate: float = option(
        2e-4, "Learning rate", "How far each step goes. 2e-4 is usual for LoRA; halve it if the loss jumps.",
        group="Learning", gt=0.0, le=1.0)
    schedule: Literal["constant", "linear", "cosine"] = option(
        "cosine", "Schedule", "How the learning rate falls after the warm-up.", group="Learning")
    warmup_steps: int = option(
        10, "Warm-up", "The learning rate rises from zero over so many steps.",
        group="Learning", unit="steps", ge=0)
    weight_decay: float = option(
        0.0, "Weight decay", "Pulls the adapter towards zero (AdamW).", group="Learning", more=True, ge=0.0, le=1.0)
    max_grad_norm: float = option(
        1.0, "Clip gradients at", "Longer gradients are shortened to this norm; 0 switches it off.",
        group="Learning", more=True, ge=0.0)
    seed: int = option(
        0, "Seed", "The same seed gives the same run, bit for bit on the CPU.",
        group="Learning", more=True, ge=0, le=2**31 - 1)
    evaluate_every: int = option(
        50, "Evaluate every", "Validation loss is measured every so many steps and at the end; 0: only at the end.",
        group="Learning", unit="steps", more=True, ge=0)
    checkpoint_every: int = option(
        50, "Checkpoint every", "A run that was interrupted loses at most so many steps; 0: only at the end.",
        group="Learning", unit="steps", more=True, ge=0)
    keep_checkpoints: int = option(
        2, "Keep checkpoints", "The newest ones that stay on the disk; the best one stays besides.",
        group="Learning", more=True, ge=1, le=1000)
    device: str = option(
        "auto", "Device", "Where to compute: auto, cpu, mps, or cuda:0 and so on.",
        group="Machine", more=True)
    dtype: Dtype = option(
        "auto", "Number type", "Type of the frozen base: auto tries which one this machine computes faster.",
        group="Machine", more=True)
    packing: Literal["auto", "on", "off"] = option(
        "auto", "Packing",
        "Rows are laid end to end instead of padded, kept apart exactly; auto checks that the model can.",
        group="Machine", more=True)

    @field_validator("device")
    @classmethod
    def _device_is_named(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError("it must be auto, cpu, mps, or cuda:0 and so on")
        return value


class RunConfig(Section):
    """Everything that is needed to repeat a run; run.toml holds it."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    adapter: AdapterConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()


def load_config(path: Path) -> RunConfig:
    """Read a run file; relative data and model paths are taken from the file's own folder.

    Raises:
        ConfigError: unreadable, not TOML, or a field that is unknown or out of its limits.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"The run file {path} does not exist.", "`lora-workbench init RUN.toml` writes one.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a run file.", "Name the run.toml inside it.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The run file {path} is not valid TOML: {error}.") from None
    return absolute_paths(parse_config(values, str(path)), path.resolve().parent)


def parse_config(values: dict[str, Any], source: str = "The configuration") -> RunConfig:
    """Build a RunConfig from nested dictionaries.

    Raises:
        ConfigError: names every wrong field, one to a line.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = "\n".join(f"  {field}: {text}" for field, text in field_errors(error))
        raise ConfigError(f"{source} has fields that can not be used:\n{lines}") from None


def field_errors(error: ValidationError) -> list[tuple[str, str]]:
    """A pydantic error as (dotted field path, plain sentence) pairs, one for each field."""
    found: dict[str, str] = {}
    for item in error.errors():
        # `target_modules` is a union; pydantic appends the branch's name to its location
        path = ".".join(str(part) for part in item["loc"][:2])
        found.setdefault(path, _plain_words(item))
    return list(found.items())


def _plain_words(item: Any) -> str:
    """One error of pydantic as a plain sentence without a capital or a full stop."""
    words = {
        "extra_forbidden": "this name is not known", "greater_than": "it must be more than {gt}",
        "greater_than_equal": "it must be at least {ge}", "less_than": "it must be less than {lt}",
        "less_than_equal": "it must be at most {le}", "int_parsing": "it must be a whole number",
        "int_type": "it must be a whole number", "int_from_float": "it must be a whole number",
        "float_parsing": "it must be a number", "float_type": "it must be a number",
        "finite_number": "it must be a finite number", "string_type": "it must be a text",
        "literal_error": "it must be one of {expected}",
    }.get(item["type"])
    if words is None:
        return item["msg"].removeprefix("Value error, ")
    limits = {key: f"{value:g}" if isinstance(value, float) else value for key, value in item.get("ctx", {}).items()}
    return words.format(**limits)


def dump_config(config: RunConfig) -> str:
    """The config as TOML text that `load_config` reads back to an equal value."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def with_overrides(config: RunConfig, overrides: list[str]) -> RunConfig:
    """Apply `section.name=value` overrides; the value is TOML, a bare word is a string.

    Raises:
        ConfigError: an override without '=', an unknown name, or a value out of its limits.
    """
    values = config.model_dump(mode="json")
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, field = name.strip().partition(".")
        if not equals or not dot or not isinstance(values.get(section), dict):
            raise ConfigError(f"--set {override}: this is not of the form section.name=value.",
                              "For example: --set adapter.rank=16")
        values[section][field] = _toml_value(text.strip())
    return parse_config(values, "--set")


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: a field that is None is left out and its default brings it back."""
    return {key: _without_none(value) if isinstance(value, dict) else value
            for key, value in table.items() if value is not None}


def absolute_paths(config: RunConfig, folder: Path) -> RunConfig:
    """The config with its relative data files, and its model where it is a folder, taken from `folder`."""
    files = tuple(str(folder / file) for file in config.data.train)
    model = config.model.path
    if model and model != STARTER and (folder / model).exists():
        model = str((folder / model).resolve())
    return config.model_copy(update={
        "data": config.data.model_copy(update={"train": files}),
        "model": config.model.model_copy(update={"path": model}),
    })
