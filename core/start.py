"""An adapter as a start for something new: which folder is meant, and which settings go on from it.

Plain Python without torch: the form and the command line ask this while one types.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.adapter_folder import CONFIG_NAME, ORIGIN_NAME, is_adapter_folder, read_object
from core.config import METHODS, DoraConfig, PatternedConfig, RunConfig, parse_config
from core.errors import AdapterError, CoreError, describe
from core.expert_names import parameter_of
from core.fused_parts import FUSED_KINDS, PARTS, PARTS_KEY
from core.records import ModelCard, ModuleInfo
from core.targets import alpha_of, rank_of, select_targets

Told = tuple[str, str, str]  # field, message, hint
_UNKNOWN = "-"  # stands for the names of modules where only the tensors tell them
_PATTERNS = ("rank_pattern", "alpha_pattern")
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


def damaged_field(config: Mapping[str, Any]) -> str:
    """Which field of adapter_config.json is of another type than it must be, and its value; "" where none is.

    What reads the config behind this check may count on numbers being numbers.
    """
    is_lora = str(config.get("peft_type", "LORA")).upper() == "LORA"
    needed = (("r", _is_whole), ("lora_alpha", _is_number)) if is_lora else ()  # other kinds look at their own
    for name, is_right in (*needed, ("lora_dropout", lambda value: value is None or _is_number(value))):
        if name in config and not is_right(config[name]):
            return f"{name} = {config[name]!r}, which is not a number that can be used"
    for name, is_right in zip(_PATTERNS, (_is_whole, _is_number), strict=True):
        pattern = config.get(name)
        if pattern is not None and not isinstance(pattern, dict):
            return f"{name} = {pattern!r}, which does not give numbers by names"
        for key, value in (pattern or {}).items() if is_lora else ():
            if not is_right(value):
                return f"{name} with {value!r} for {key!r}, which is not a number that can be used"
    targets = config.get("target_modules")
    if targets is not None and not isinstance(targets, str | list):
        return f"target_modules = {targets!r}, which is no list of names"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


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
    damaged = damaged_field(config)
    if damaged:
        raise ValueError(f"it has {damaged}")
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


def start_problem(adapter: PatternedConfig, card: ModelCard | None = None) -> Told | None:
    """(field, message, hint) for what keeps a run from starting from `adapter.start_from`; None where nothing does.

    What only the tensors tell is checked when the run begins, and what the base model tells only with its card.
    """
    if not adapter.start_from:
        return None
    try:
        folder = adapter_folder(Path(adapter.start_from).expanduser())
        origin = read_object(folder / ORIGIN_NAME) if (folder / ORIGIN_NAME).exists() else {}
        wanted = settings_from(read_object(folder / CONFIG_NAME), [_UNKNOWN], origin)
    except (CoreError, OSError) as error:
        return "start_from", describe(error).message, "Choose another one, or empty it."
    except ValueError as error:
        return "start_from", f"Training can not go on from this adapter: {error}.", "Choose another one, or empty it."
    trained_on = origin.get("base_fingerprint")
    if card is not None and trained_on and trained_on != card.fingerprint:
        return ("start_from", "The adapter to start from was trained on another base model.",
                "Choose that base model, or start from another adapter.")
    return _difference(adapter, wanted) or (_layer_difference(adapter, wanted, card.modules) if card else None)


def _difference(adapter: PatternedConfig, wanted: dict[str, Any]) -> Told | None:
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


def _layer_difference(adapter: PatternedConfig, wanted: dict[str, Any], modules: Sequence[ModuleInfo]) -> Told | None:
    """The first layer of this model in which the run is unlike the adapter that it goes on from."""
    theirs = METHODS[wanted["method"]].model_validate(wanted)
    assert isinstance(theirs, PatternedConfig)
    try:
        own = {module.name for module in select_targets(modules, adapter)}
        known = wanted["target_modules"] != [_UNKNOWN]
        other = {module.name for module in select_targets(modules, theirs)} if known else own
    except AdapterError:
        return None  # a problem of the target layers, told there, or of the adapter, which the tensors tell
    for module in modules:
        name = module.name
        if (name in own) != (name in other):
            return ("target_modules", f"{'The adapter to start from' if name in own else 'The run'} does not change "
                    f"{name}.", "Choose the same target layers as the adapter's.")
        if name not in own:
            continue
        for field, value_of in (("rank_pattern", rank_of), ("alpha_pattern", alpha_of)):
            mine, its = value_of(name, adapter), value_of(name, theirs)
            if not math.isclose(mine, its, rel_tol=1e-9):
                return (field, f"{name} has {field.partition('_')[0]} {its:g} in the adapter to start from, but "
                        f"{mine:g} in this run.", "Set the same.")
    return None


def going_on_from(config: RunConfig, settings: dict[str, Any], model: str) -> RunConfig:
    """`config` with an adapter's own settings (see AdapterCard.settings) and base model: a run that goes on from it.

    Raises:
        ConfigError: the settings are not those of a method that is offered.
    """
    values = config.model_dump(mode="json")
    return parse_config({**values, "adapter": settings, "model": {**values["model"], "path": model}},
                        "What is known of the adapter")
