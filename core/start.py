"""An adapter as a start for something new: which folder is meant, and which settings go on from it.

Plain Python without torch: the form and the command line ask this while one types.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.adapter_folder import CONFIG_NAME, ORIGIN_NAME, is_adapter_folder, read_object
from core.config import METHODS, DoraConfig, PatternedConfig, RunConfig, parse_config
from core.errors import CoreError, describe
from core.expert_names import parameter_of
from core.fused_parts import FUSED_KINDS, PARTS, PARTS_KEY

_LIMITS_TARGETS = ("layers_to_transform", "layers_pattern", "exclude_modules", "layer_replication")


def adapter_folder(path: Path) -> Path:
    """The adapter folder that `path` means: itself, or the final adapter of a run folder."""
    if not is_adapter_folder(path) and is_adapter_folder(path / "adapter"):
        return path / "adapter"
    if (path / "run.toml").exists() and (path / "model" / "config.json").exists():  # full fine-tuning left a model
        return path / "model"
    return path


def target_list(config: dict[str, Any], modules: Sequence[str]) -> list[str]:
    """Names for `target_modules` that mean exactly these modules: the file's own list where it does, else all names."""
    own = config.get("target_modules")
    if not isinstance(own, list) or any(config.get(name) for name in _LIMITS_TARGETS):
        return sorted(modules)
    return sorted(str(name) for name in own)


def settings_from(config: dict[str, Any], modules: Sequence[str], origin: Mapping[str, Any] | None = None,
                  ) -> dict[str, Any]:
    """The fields of the table [adapter] with which training goes on from an adapter; `start_from` is not among them.

    Args:
        config: adapter_config.json.
        modules: the names of all pairs of the adapter.
        origin: workbench.json, where there is one.

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
        "rslora": bool(config.get("use_rslora")), "target_modules": _targets(config, modules),
        "rank_pattern": _plain_pattern(config.get("rank_pattern")),
        "alpha_pattern": _plain_pattern(config.get("alpha_pattern")),
    }
    values |= _parts(values, origin or {})
    try:
        METHODS[values["method"]].model_validate(values)
    except ValueError:
        raise ValueError("its settings are outside of what can be trained here") from None
    return values


def _targets(config: dict[str, Any], modules: Sequence[str]) -> list[str]:
    """Modules, and parameters of experts, by names that mean exactly these."""
    parameters = [str(name).removesuffix(".weight") for name in config.get("target_parameters") or ()]
    return sorted({*parameters, *target_list(config, [parameter_of(name) or name for name in modules])})


def _parts(values: dict[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that differ where only parts of fused layers were adapted: the file has the rank of all together."""
    parts = origin.get(PARTS_KEY)
    if not isinstance(parts, list) or not parts:
        return {}
    factor = math.sqrt(len(parts)) if values["rslora"] else len(parts)
    own = {name: (number / len(parts), values["alpha_pattern"].get(name, values["alpha"]) / factor)
           for name, number in values["rank_pattern"].items() if name.rpartition(".")[2] in FUSED_KINDS}
    ranks = {**values["rank_pattern"], **{name: rank for name, (rank, _) in own.items()}}
    alphas = {**values["alpha_pattern"], **{name: alpha for name, (_, alpha) in own.items()}}
    return {"fused_parts": parts,
            "rank_pattern": {name: int(rank) for name, rank in ranks.items() if rank != values["rank"]},
            "alpha_pattern": {name: alpha for name, alpha in alphas.items()
                              if not math.isclose(alpha, values["alpha"], rel_tol=1e-9)}}


def _plain_pattern(pattern: Any) -> dict[str, Any]:
    return {str(key).lstrip("^"): value for key, value in (pattern or {}).items()}


def start_problem(adapter: PatternedConfig) -> tuple[str, str, str] | None:
    """(field, message, hint) for what keeps a run from starting from `adapter.start_from`; None where nothing does.

    What only the tensors tell is checked when the run begins.
    """
    if not adapter.start_from:
        return None
    try:
        folder = adapter_folder(Path(adapter.start_from))
        origin = read_object(folder / ORIGIN_NAME) if (folder / ORIGIN_NAME).exists() else {}
        wanted = settings_from(read_object(folder / CONFIG_NAME), ["-"], origin)
    except (CoreError, OSError) as error:
        return "start_from", describe(error).message, "Choose another one, or empty it."
    except ValueError as error:
        return "start_from", f"Training can not go on from this adapter: {error}.", "Choose another one, or empty it."
    return _difference(adapter, wanted)


def _difference(adapter: PatternedConfig, wanted: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first field in which the run is unlike the adapter that it goes on from."""
    if adapter.init != "kaiming":
        return "init", "A run that goes on from an adapter has its start already.", "Set it to kaiming."
    if wanted["method"] != ("dora" if isinstance(adapter, DoraConfig) else "lora"):
        return "method", f"The adapter to start from was trained with {wanted['method']}.", "Choose the same method."
    for name in ("rank", "alpha", "rslora"):
        if getattr(adapter, name) != wanted[name]:
            shown = "on" if wanted[name] is True else "off" if wanted[name] is False else f"{wanted[name]:g}"
            return name, f"The adapter to start from has another value here: {shown}.", "Set the same."
    parts = tuple(wanted.get("fused_parts", PARTS))
    if adapter.fused_parts != parts:
        return ("fused_parts", f"The adapter to start from has other parts of fused layers: {', '.join(parts)}.",
                "Set the same.")
    return None


def going_on_from(config: RunConfig, settings: dict[str, Any], model: str) -> RunConfig:
    """`config` with an adapter's own settings (see AdapterCard.settings) and base model: a run that goes on from it.

    Raises:
        ConfigError: the settings are not those of a method that is offered.
    """
    values = config.model_dump(mode="json")
    return parse_config({**values, "adapter": settings, "model": {**values["model"], "path": model}},
                        "What is known of the adapter")
