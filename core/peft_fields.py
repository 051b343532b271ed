"""Fields of a foreign adapter_config.json: those that are damaged, and those that change what its numbers mean.

Plain Python without torch. What is not named here is harmless for reading (how the adapter was started, saved or
trained) and is kept when the file is written again.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.adapter_folder import ADALORA_TYPE
from core.errors import AdapterError

_LARGEST = 2**53  # of a number in a config; whatever is larger is damage
_PATTERNS = ("rank_pattern", "alpha_pattern")
# These starts change the base's weights when the adapter is put on, so its numbers count for another base.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


def _unset(value: Any) -> bool:
    return value is None or value is False or value in ([], {})


def _keeps_the_base(value: Any) -> bool:
    return not str(value).lower().startswith(_CHANGE_THE_BASE)


def _names(value: Any) -> bool:
    return _unset(value) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


# Each field with the values that are read rightly.
_MEANING: dict[str, Callable[[Any], bool]] = {
    "peft_type": lambda value: value in ("LORA", ADALORA_TYPE),
    "bias": lambda value: value in ("none", "all", "lora_only", None),
    "init_lora_weights": _keeps_the_base,
    # another layer, or another way of computing it
    "lora_bias": _unset, "layer_replication": _unset, "megatron_config": _unset,
    "use_qalora": _unset, "alora_invocation_tokens": _unset, "arrow_config": _unset, "kasa_config": _unset,
    "use_bdlora": _unset, "monteclora_config": _unset,
}


def damaged_field(config: Mapping[str, Any]) -> str:
    """Which field of adapter_config.json is of another type than it must be, and its value; "" where none is.

    What reads the config behind this check may count on numbers being numbers.
    """
    is_lora = str(config.get("peft_type", "LORA")).upper() == "LORA"
    needed: tuple[tuple[str, Callable[[Any], bool]], ...] = ()
    if is_lora:
        needed = (("r", is_whole), ("lora_alpha", _is_number))
    elif str(config.get("peft_type")).upper() == ADALORA_TYPE:  # whose schedule counts for training alone
        needed = tuple((name, _or_empty(is_whole)) for name in ("r", "init_r", "target_r"))
        needed = (*needed, ("lora_alpha", _or_empty(_is_number)))
    for name, is_right in (*needed, ("lora_dropout", _or_empty(_is_number))):
        if name in config and not is_right(config[name]):
            return f"{name} = {config[name]!r}, which is not a number that can be used"
    for name, is_right in zip(_PATTERNS, (is_whole, _is_number), strict=True):
        pattern = config.get(name)
        if pattern is not None and not isinstance(pattern, dict):
            return f"{name} = {pattern!r}, which does not give numbers by names"
        for key, value in (pattern or {}).items() if is_lora else ():
            if not is_right(value):
                return f"{name} with {value!r} for {key!r}, which is not a number that can be used"
    targets = config.get("target_modules")
    if targets is not None and not isinstance(targets, str | list):
        return f"target_modules = {targets!r}, which is no list of names"
    return _damaged_lists(config)


def _damaged_lists(config: Mapping[str, Any]) -> str:
    for name in ("modules_to_save", "target_parameters"):
        if not _names(config.get(name)):
            return f"{name} = {config[name]!r}, which is no list of names"
    rows = config.get("trainable_token_indices")
    lists = list(rows.values()) if isinstance(rows, dict) else [rows or []]
    if not all(isinstance(each, list) and all(is_whole(number) for number in each) for each in lists):
        return f"trainable_token_indices = {rows!r}, which is no list of tokens"
    return ""


def _or_empty(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST \
        and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """True for a number without a fraction that can be counted with."""
    return _is_number(value) and value == int(value)


def refuse_unknown_meaning(config: Mapping[str, Any], folder: Path) -> None:
    """Check the fields that change the meaning of the weights.

    Raises:
        AdapterError: one of them has a value that would be read wrongly, or is of a wrong type; it is named.
    """
    damaged = damaged_field(config)
    if damaged:
        raise AdapterError(f"The adapter in {folder} has {damaged}.", "Its adapter_config.json is damaged.")
    if "peft_type" not in config:
        raise AdapterError(f"The adapter in {folder} does not say its peft_type.", "Its kind is not known.")
    for name, can_be_read in _MEANING.items():
        if name in config and not can_be_read(config[name]):
            raise AdapterError(f"The adapter in {folder} uses {name} = {config[name]!r}, which is not supported.",
                               "It would be read wrongly, so it is not read at all.")
