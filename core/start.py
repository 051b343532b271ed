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
from core.errors import AdapterError, describe
from core.expert_names import parameter_of
from core.fused_parts import FUSED_KINDS, PARTS_KEY
from core.peft_fields import damaged_field, is_whole

MODEL_CONFIG = "config.json"
_OUTSIDE = "its settings are outside of what can be trained here"
_LARGEST_TOKENIZER = 256 * 2**20  # bytes
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


def start_tables(folder: Path, modules: Sequence[str], whole: Sequence[str] | None = None) -> dict[str, Any]:
    """The tables "adapter", "prefix" and "bottleneck" of a run that goes on from the adapter in `folder`.

    The last two are None where the adapter has no such part; `start_from` is not among the fields of the first.

    Args:
        folder: of the adapter; see `adapter_folder`.
        modules: the names of all pairs of the adapter.
        whole: the names of all parameters that it holds whole; None where they are not known, so that its config
            alone tells of them, which peft reads by rules of its own.

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
    if whole is not None and tables["adapter"]["method"] != "none":
        tables["adapter"] |= _as_held(whole, own, is_ours=bool(origin.get("base_fingerprint")))
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
        if values["rank"] is None or values["alpha"] is None:
            raise ValueError("it does not tell its rank and alpha")
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


def _as_held(whole: Sequence[str], config: Mapping[str, Any], *, is_ours: bool) -> dict[str, Any]:
    """What is trained whole, told by the file's own parameters: peft's names may mean more modules, and a mode of
    biases says nothing where a model has none."""
    modules = sorted({name.rpartition(".")[0] for name in whole if not name.endswith(".bias")})
    has_bias = any(name.endswith(".bias") for name in whole)
    return {"modules_to_save": list(config.get("modules_to_save") or ()) if is_ours else modules,
            "bias": (config.get("bias") or "none") if has_bias else "none"}


def _new_tokens(config: Mapping[str, Any], folder: Path) -> list[str]:
    """The tokens whose rows the adapter trained, by the tokenizer beside it; [] where it does not name all of them."""
    told = config.get("trainable_token_indices")
    lists = list(told.values()) if isinstance(told, dict) else [told or []]
    ids = lists[0] if lists else []
    path = folder / "tokenizer.json"
    if not ids or any(sorted(each) != sorted(ids) for each in lists) or not path.exists():
        return []
    try:
        names = _token_names(path, path.stat().st_mtime_ns)
    except (AdapterError, OSError) as error:
        raise ValueError(f"its tokenizer can not be read ({describe(error).message.rstrip('.')})") from None
    return [names[number] for number in sorted(ids)] if set(ids) <= names.keys() else []


@lru_cache(maxsize=4)
def _token_names(path: Path, _changed: int) -> dict[int, str]:
    """The tokens of a tokenizer.json by their numbers; kept while the file is unchanged."""
    values = read_object(path, _LARGEST_TOKENIZER)
    model, added = values.get("model"), values.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of a Unigram model: (token, score) in order
        pairs = [(each[0], number) for number, each in enumerate(vocabulary) if isinstance(each, list) and each]
    else:
        pairs = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    pairs += [(each.get("content"), each.get("id")) for each in added if isinstance(each, dict)] \
        if isinstance(added, list) else []
    return {number: name for name, number in pairs if isinstance(number, int) and isinstance(name, str)}


def _adalora(config: Mapping[str, Any]) -> dict[str, Any]:
    """The triplets go on in their places, the free ones begin anew, and the ranks are chosen once more."""
    first, target = config.get("init_r"), config.get("target_r")
    if not isinstance(first, int) or not isinstance(target, int):
        raise ValueError("it does not tell its ranks")
    values = {"method": "adalora", "rank": min(first, target), "initial_rank": first,
              "alpha": config.get("lora_alpha") or first,  # as PEFT takes an alpha of zero
              "budget_every": config.get("deltaT"), "sensitivity_beta": config.get("beta1"),
              "uncertainty_beta": config.get("beta2"), "orthogonality": config.get("orth_reg_weight")}
    start, end, total = config.get("tinit"), config.get("tfinal"), config.get("total_step")
    if all(is_whole(number) for number in (start, end, total)) and total:
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
