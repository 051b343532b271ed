"""The whole RunConfig, its file, and the changes that `--set` makes to it."""

import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from core.config.adapter import METHODS, AdapterField, LoraConfig, with_method
from core.config.extra import BottleneckConfig, PrefixConfig
from core.config.section import Section
from core.config.training import DataConfig, ModelConfig, TrainingConfig
from core.errors import ConfigError

STARTER = "starter"  # the name of the model that comes along; a folder called so is ./starter


class RunConfig(Section):
    """Everything that is needed to repeat a run; run.toml holds it."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    adapter: AdapterField = LoraConfig()
    prefix: PrefixConfig | None = None  # beside the adapter, or alone with the method "none"
    bottleneck: BottleneckConfig | None = None  # likewise
    training: TrainingConfig = TrainingConfig()

    @property
    def trained(self) -> tuple[str, ...]:
        """What is trained: the adapter's method unless it is "none", "prefix", "bottleneck"."""
        tables = (("prefix", self.prefix), ("bottleneck", self.bottleneck))
        own = () if self.adapter.method == "none" else (self.adapter.method,)
        return (*own, *(name for name, table in tables if table is not None))


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
        # `adapter` and `target_modules` are unions; pydantic puts the branch's name into the location
        place = [str(part) for part in item["loc"]]
        method = place.pop(1) if place[0] == "adapter" and len(place) > 1 and place[1] in METHODS else ""
        if item["type"] == "union_tag_invalid":
            place.append("method")
        text = _plain_words(item)
        if item["type"] == "extra_forbidden":
            text += _nearest(place[-1], _known_names(place, method))
        found.setdefault(".".join(place[:2]), text)
    return list(found.items())


def _known_names(place: list[str], method: str) -> Collection[str]:
    """The names that there are where an unknown one stands."""
    if len(place) == 1:
        return RunConfig.model_fields
    tables = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig, "prefix": PrefixConfig,
              "bottleneck": BottleneckConfig, "adapter": METHODS.get(method, LoraConfig)}
    return tables[place[0]].model_fields


def _nearest(name: str, known: Collection[str]) -> str:
    """What was probably meant, as the end of a sentence; "" where nothing is near."""
    found = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _plain_words(item: Any) -> str:
    """One error of pydantic as a plain sentence without a capital or a full stop."""
    words = {
        "extra_forbidden": "this name is not known", "greater_than": "it must be more than {gt}",
        "greater_than_equal": "it must be at least {ge}", "less_than": "it must be less than {lt}",
        "less_than_equal": "it must be at most {le}", "int_parsing": "it must be a whole number",
        "int_type": "it must be a whole number", "int_from_float": "it must be a whole number",
        "float_parsing": "it must be a number", "float_type": "it must be a number",
        "finite_number": "it must be a finite number", "string_type": "it must be a text",
        "literal_error": "it must be one of {expected}", "union_tag_invalid": "it must be one of {expected_tags}",
    }.get(item["type"])
    if words is None:
        return item["msg"].removeprefix("Value error, ")
    limits = {key: f"{value:g}" if isinstance(value, float) else value for key, value in item.get("ctx", {}).items()}
    return words.format(**limits)


def dump_config(config: RunConfig) -> str:
    """The config as TOML text that `load_config` reads back to an equal value."""
    values = _without_none(config.model_dump(mode="json"))
    values["adapter"] = {"method": config.adapter.method, **values["adapter"]}  # first, as it says what the rest means
    return tomli_w.dumps(values)


def with_overrides(config: RunConfig, overrides: list[str]) -> RunConfig:
    """Apply `section.name=value` overrides; the value is TOML, a bare word is a string.

    Raises:
        ConfigError: an override without '=', an unknown name, or a value out of its limits.
    """
    values = config.model_dump(mode="json")
    changes = [_split(override, values) for override in overrides]
    for section, field, value in changes:
        if (section, field) == ("adapter", "method"):  # first, as it decides which other fields there are
            values["adapter"] = with_method(config.adapter, str(value))
    for section, field, value in changes:
        if values[section] is None:  # an optional table begins with its first field
            values[section] = {}
        values[section][field] = value
    return parse_config(values, "--set")


def _split(override: str, sections: dict[str, Any]) -> tuple[str, str, Any]:
    """`adapter.rank=16` as ("adapter", "rank", 16)."""
    name, equals, text = override.partition("=")
    section, dot, field = name.strip().partition(".")
    if not equals or not dot:
        raise ConfigError(f"--set {override}: this is not of the form section.name=value.",
                          "For example: --set adapter.rank=16")
    if section not in sections:
        raise ConfigError(f"--set {override}: there is no table {section}{_nearest(section, sections) or '.'}",
                          f"There are {', '.join(sections)}.")
    return section, field, _toml_value(text.strip())


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
    adapter = config.adapter
    start = getattr(adapter, "start_from", "")
    if start and (folder / start).exists():
        adapter = adapter.model_copy(update={"start_from": str((folder / start).resolve())})
    return config.model_copy(update={
        "adapter": adapter,
        "data": config.data.model_copy(update={"train": files}),
        "model": config.model.model_copy(update={"path": model}),
    })
