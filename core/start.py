"""An adapter as a start for something new: which folder is meant, and which tables of a run file go on from it.

Plain Python without torch: the form and the command line ask this while one types. What keeps a run from its
start is told by `core.start_problem`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.adapter_folder import (
    ADALORA_TYPE,
    BOTTLENECK_CONFIG,
    BOTTLENECK_FOLDER,
    CONFIG_NAME,
    ORIGIN_NAME,
    PREFIX_FOLDER,
    PREFIX_TYPE,
    is_adapter_folder,
    read_object,
)
from core.config import METHODS, BottleneckConfig, RunConfig, parse_config
from core.expert_names import parameter_of
from core.fused_parts import FUSED_KINDS, PARTS_KEY

MODEL_CONFIG = "config.json"
_OUTSIDE = "its settings are outside of what can be trained here"
_LARGEST_TOKENIZER = 256 * 2**20  # bytes
_PATTERNS = ("rank_pattern", "alpha_pattern")
_LIMITS_TARGETS = ("layers_to_transform", "layers_pattern", "exclude_modules", "layer_replication")


def adapter_folder(path: Path) -> Path:
    """The adapter folder that `path` means: itself, or the final adapter of a run folder."""
    if not is_adapter_folder(path) and is_adapter_folder(path / "adapter"):
        return path / "adapter"
    if (path / "run.toml").exists() and (path / "model" / MODEL_CONFIG).exists():  # full fine-tuning left a model
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
    return _damaged_beside(config.get("modules_to_save"), config.get("trainable_token_indices"))


def _damaged_beside(saved: Any, rows: Any) -> str:
    if saved is not None and not (isinstance(saved, list) and all(isinstance(name, str) for name in saved)):
        return f"modules_to_save = {saved!r}, which is no list of names"
    lists = list(rows.values()) if isinstance(rows, dict) else [[] if rows is None else rows]
    if not all(isinstance(each, list) and all(_is_whole(number) for number in each) for each in lists):
        return f"trainable_token_indices = {rows!r}, which is no list of tokens"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def start_tables(folder: Path, modules: Sequence[str]) -> dict[str, Any]:
    """The tables "adapter", "prefix" and "bottleneck" of a run that goes on from the adapter in `folder`.

    The last two are None where the adapter has no such part; `start_from` is not among the fields of the first.

    Args:
        folder: of the adapter; see `adapter_folder`.
        modules: the names of all pairs of the adapter.

    Raises:
        ValueError: no method that is offered here goes on from it; says why.
        AdapterError: a config can not be read.
    """
    if (folder / MODEL_CONFIG).exists() and not is_adapter_folder(folder):
        raise ValueError("it is a whole model, which is chosen as the base model")
    origin = read_object(folder / ORIGIN_NAME) if (folder / ORIGIN_NAME).exists() else {}
    parts = [place for place in (folder / PREFIX_FOLDER, folder / BOTTLENECK_FOLDER) if place.is_dir()]
    own = read_object(folder / CONFIG_NAME) if (folder / CONFIG_NAME).exists() or not parts else {}
    alone = own if _kind(own) == PREFIX_TYPE else {}
    beside = folder / PREFIX_FOLDER / CONFIG_NAME
    prefix = alone or (read_object(beside) if beside.exists() else {})
    networks = folder / BOTTLENECK_FOLDER / BOTTLENECK_CONFIG
    tables = {
        "adapter": {"method": "none"} if alone or not own
        else settings_from(own, modules, origin, folder),
        "prefix": {"length": prefix.get("num_virtual_tokens")} if prefix else None,
        "bottleneck": _bottleneck(read_object(networks)) if networks.exists() else None}
    try:
        RunConfig.model_validate(tables)
    except ValueError:
        raise ValueError(_OUTSIDE) from None
    return tables


def settings_from(config: dict[str, Any], modules: Sequence[str], origin: Mapping[str, Any] | None = None,
                  folder: Path | None = None) -> dict[str, Any]:
    """The fields of the table [adapter] with which training goes on from an adapter of layers.

    Args:
        config: adapter_config.json.
        modules: the names of all pairs of the adapter.
        origin: workbench.json, where there is one.
        folder: of the adapter, whose tokenizer names the tokens whose rows it trained.

    Raises:
        ValueError: no method that is offered here goes on from it; says why.
    """
    damaged = damaged_field(config)
    if damaged:
        raise ValueError(f"it has {damaged}")
    kind = _kind(config)
    if kind not in ("LORA", ADALORA_TYPE):
        raise ValueError(f"training can not go on from {kind}")
    values = {"alpha": config.get("lora_alpha"), "dropout": config.get("lora_dropout") or 0.0,
              "target_modules": _targets(config, modules), **_beside(config, folder)}
    if kind == ADALORA_TYPE:
        values |= _adalora(config)
    else:
        values |= {"method": "dora" if config.get("use_dora") else "lora", "rank": config.get("r"),
                   "rslora": bool(config.get("use_rslora")),
                   "rank_pattern": _plain_pattern(config.get("rank_pattern")),
                   "alpha_pattern": _plain_pattern(config.get("alpha_pattern"))}
        values |= _parts(values, origin or {})
    try:
        METHODS[values["method"]].model_validate(values)
    except ValueError:
        raise ValueError(_OUTSIDE) from None
    return values


def _kind(config: Mapping[str, Any]) -> str:
    return str(config.get("peft_type", "LORA")).upper()


def _beside(config: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The fields of what is trained beside the updates; those that say nothing are left out."""
    new_tokens = _new_tokens(config, folder) if folder is not None else []
    if config.get("trainable_token_indices") and not new_tokens:
        raise ValueError("it trains rows of single tokens, and its folder does not say which tokens these are")
    told = {"bias": config.get("bias") or "none", "modules_to_save": list(config.get("modules_to_save") or ()),
            "new_tokens": new_tokens, "ensure_weight_tying": bool(config.get("ensure_weight_tying"))}
    return {name: value for name, value in told.items() if value not in ("none", [], False)}


def _new_tokens(config: Mapping[str, Any], folder: Path) -> list[str]:
    """The tokens whose rows the adapter trained, by the tokenizer beside it; [] where it does not name all of them."""
    told = config.get("trainable_token_indices")
    lists = list(told.values()) if isinstance(told, dict) else [told or []]
    ids = lists[0] if lists else []
    if any(sorted(each) != sorted(ids) for each in lists):
        return []
    path = folder / "tokenizer.json"
    names = _added_tokens(path, path.stat().st_mtime_ns) if path.exists() else {}
    return [names[number] for number in sorted(ids)] if set(ids) <= names.keys() else []


@lru_cache(maxsize=4)
def _added_tokens(path: Path, _changed: int) -> dict[int, str]:
    """Tokens that were added to the vocabulary of a tokenizer.json, by their numbers; kept while it is unchanged."""
    added = read_object(path, _LARGEST_TOKENIZER).get("added_tokens")
    each_one = [each for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    return {each["id"]: each["content"] for each in each_one if {"id", "content"} <= each.keys()}


def _adalora(config: Mapping[str, Any]) -> dict[str, Any]:
    """The triplets go on in their places, the free ones begin anew, and the ranks are chosen once more."""
    first, total = config.get("init_r"), config.get("total_step")
    if not (_is_whole(first) and _is_whole(config.get("target_r"))):
        raise ValueError("it does not tell its ranks")
    values = {"method": "adalora", "rank": config["target_r"], "initial_rank": first,
              "alpha": config.get("lora_alpha") or first,  # as PEFT takes an alpha of zero
              "budget_every": config.get("deltaT"), "sensitivity_beta": config.get("beta1"),
              "uncertainty_beta": config.get("beta2"), "orthogonality": config.get("orth_reg_weight")}
    start, end = config.get("tinit"), config.get("tfinal")
    if all(isinstance(number, int) for number in (start, end, total)) and total:
        values |= {"budget_start": round(start / total, 4), "budget_end": round(1 - end / total, 4)}
    return {name: value for name, value in values.items() if value is not None}


def _bottleneck(config: Mapping[str, Any]) -> dict[str, Any]:
    """Files of earlier versions do not tell the layers: they are all then, or the tensors tell otherwise."""
    names = BottleneckConfig.model_fields
    return {name: config[name] for name in names if config.get(name) is not None}


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


def going_on_from(config: RunConfig, settings: dict[str, Any], model: str) -> RunConfig:
    """`config` with an adapter's own tables (see AdapterCard.settings) and base model: a run that goes on from it.

    Raises:
        ConfigError: the settings are not those of a method that is offered.
    """
    values = config.model_dump(mode="json")
    return parse_config({**values, **settings, "model": {**values["model"], "path": model}},
                        "What is known of the adapter")
