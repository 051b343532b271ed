"""An adapter as a start for something new: which folder is meant, and which settings go on from it.

Plain Python without torch: the form and the command line ask this while one types.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.adapter_folder import is_adapter_folder
from core.config import METHODS, DoraConfig, PatternedConfig

ADAPTER_CONFIG = "adapter_config.json"
_LARGEST_BYTES = 4 * 2**20
_LIMITS_TARGETS = ("layers_to_transform", "layers_pattern", "exclude_modules", "layer_replication")


def adapter_folder(path: Path) -> Path:
    """The adapter folder that `path` means: itself, or the final adapter of a run folder."""
    if not is_adapter_folder(path) and is_adapter_folder(path / "adapter"):
        return path / "adapter"
    if (path / "run.toml").exists() and (path / "model" / "config.json").exists():  # full fine-tuning left a model
        return path / "model"
    return path


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of an adapter folder.

    Raises:
        ValueError: there is none, or it is damaged; the words are for a person.
    """
    path = folder / ADAPTER_CONFIG
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ValueError(f"{path} is far too large for a configuration")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{folder} holds no adapter") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"{path} is not valid JSON") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object")
    return values


def target_list(config: dict[str, Any], modules: Sequence[str]) -> list[str]:
    """Names for `target_modules` that mean exactly these modules: the file's own list where it does, else all names."""
    own = config.get("target_modules")
    plain = isinstance(own, list) and all(isinstance(name, str) for name in own)
    return sorted(own) if plain and not any(config.get(name) for name in _LIMITS_TARGETS) else sorted(modules)


def settings_from(config: dict[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """The fields of the table [adapter] with which training goes on from an adapter; `start_from` is not among them.

    Raises:
        ValueError: no method that is offered here goes on from it; says why.
    """
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        raise ValueError(f"training can only go on from LoRA and DoRA, not from {kind}")
    for name, empty in (("bias", ("none", None)), ("modules_to_save", (None, [])),
                        ("trainable_token_indices", (None, [], {}))):
        if config.get(name) not in empty:
            raise ValueError(f"it also trains {name}, which can not be gone on from")
    values = {
        "method": "dora" if config.get("use_dora") else "lora", "rank": config.get("r"),
        "alpha": config.get("lora_alpha"), "dropout": config.get("lora_dropout") or 0.0,
        "rslora": bool(config.get("use_rslora")), "target_modules": target_list(config, modules),
        "rank_pattern": _plain_pattern(config.get("rank_pattern")),
        "alpha_pattern": _plain_pattern(config.get("alpha_pattern")),
    }
    try:
        METHODS[values["method"]].model_validate(values)
    except ValueError:
        raise ValueError("its settings are outside of what can be trained here") from None
    return values


def _plain_pattern(pattern: Any) -> dict[str, Any]:
    return {str(key).lstrip("^"): value for key, value in (pattern or {}).items()}


def start_problem(adapter: PatternedConfig) -> tuple[str, str, str] | None:
    """(field, message, hint) for what keeps a run from starting from `adapter.start_from`; None where nothing does.

    What only the tensors tell is checked when the run begins.
    """
    if not adapter.start_from:
        return None
    try:
        config = read_adapter_config(adapter_folder(Path(adapter.start_from)))
        wanted = settings_from(config, ["-"])
    except ValueError as error:
        return "start_from", f"Training can not go on from this adapter: {error}.", "Choose another one, or empty it."
    if adapter.init != "kaiming":
        return "init", "A run that goes on from an adapter has its start already.", "Set it to kaiming."
    if wanted["method"] != ("dora" if isinstance(adapter, DoraConfig) else "lora"):
        return "method", f"The adapter to start from was trained with {wanted['method']}.", "Choose the same method."
    for name in ("rank", "alpha", "rslora"):
        if getattr(adapter, name) != wanted[name]:
            shown = "on" if wanted[name] is True else "off" if wanted[name] is False else f"{wanted[name]:g}"
            return name, f"The adapter to start from has another value here: {shown}.", "Set the same."
    return None
