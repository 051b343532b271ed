"""Fields of a foreign adapter_config.json that change what its numbers mean.

What is not named here is harmless for reading (how the adapter was started, saved or trained) and is
kept when the file is written again.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.adapter_folder import ADALORA_TYPE
from core.errors import AdapterError
from core.start import damaged_field

# These starts change the base's weights when the adapter is put on, so its numbers count for another base.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


def _unset(value: Any) -> bool:
    return value is None or value is False or value in ([], {})


def _keeps_the_base(value: Any) -> bool:
    return not str(value).lower().startswith(_CHANGE_THE_BASE)


def _token_rows(value: Any) -> bool:
    lists = value.values() if isinstance(value, dict) else [value]
    return _unset(value) or all(isinstance(each, list) for each in lists)


def _names(value: Any) -> bool:
    return _unset(value) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


# Each field with the values that are read rightly.
_MEANING: dict[str, Callable[[Any], bool]] = {
    "peft_type": lambda value: value in ("LORA", ADALORA_TYPE),
    "bias": lambda value: value in ("none", "all", "lora_only", None),
    "modules_to_save": _names,
    "target_parameters": _names,
    "trainable_token_indices": _token_rows,
    "init_lora_weights": _keeps_the_base,
    # another layer, or another way of computing it
    "lora_bias": _unset, "layer_replication": _unset, "megatron_config": _unset,
    "use_qalora": _unset, "alora_invocation_tokens": _unset, "arrow_config": _unset, "kasa_config": _unset,
    "use_bdlora": _unset, "monteclora_config": _unset,
}


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
