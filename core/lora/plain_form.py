"""Adapters as plain LoRA that every loader reads right: the scale inside B, one rank, lora_alpha = r, no flags.

Some loaders take alpha / r of the config for every module, or alpha through the tensor's own rank, whatever
`rank_pattern`, `alpha_pattern` or rsLoRA say. In this form all of them come to the factor 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.errors import AdapterError
from core.expert_names import written_module
from core.lora.adapter_file import AdapterFile
from core.lora.expert_layout import to_file
from core.lora.expert_pairs import split_pairs, stacked
from core.lora.peft_keys import PREFIX, LoraPair
from core.start import target_list


def require_low_rank(adapter: AdapterFile, action: str) -> None:
    """Refuse an adapter that is more than updates B A of weights.

    Args:
        adapter: the adapter.
        action: what can not be done then: "mixed", "written in the compatible form".

    Raises:
        AdapterError: names what else it holds.
    """
    extra = beyond_low_rank(adapter)
    if extra:
        raise AdapterError(f"The adapter in {adapter.path} can not be {action}: {extra}.",
                           "Merge it into its base model instead.")


def beyond_low_rank(adapter: AdapterFile) -> str:
    """What an adapter holds besides updates B A, in words; "" where nothing."""
    contents = adapter.contents
    if adapter.extras.words:
        return f"it also has {adapter.extras.words}"
    if contents.rows:
        return f"it also trained single tokens of {next(iter(contents.rows))}"
    if contents.parameters:
        return f"it also trained {next(iter(contents.parameters))} whole"
    lengths = [name for name, pair in adapter.pairs.items() if pair.magnitude is not None]
    if lengths:
        return f"it also learned the row lengths of {lengths[0]} (DoRA), which is no low-rank change"
    return ""


def padded(pairs: Mapping[str, LoraPair], rank: int) -> dict[str, LoraPair]:
    """The same updates with A (rank, in), B (out, rank) in fp32 and the factor 1; what is added is zero."""
    plain = {}
    for name, pair in pairs.items():
        own, inputs = pair.lora_a.shape
        lora_a, lora_b = torch.zeros(rank, inputs), torch.zeros(pair.lora_b.shape[0], rank)
        lora_a[:own] = pair.lora_a
        lora_b[:, :own] = pair.lora_b.double().mul(pair.scale)
        plain[name] = LoraPair(lora_a, lora_b, 1.0, embedding=pair.embedding, kernel=pair.kernel)
    return plain


def compatible_form(adapter: AdapterFile) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by their names in the file, and adapter_config.json.

    Raises:
        AdapterError: the adapter is more than updates B A.
    """
    require_low_rank(adapter, "written in the compatible form")
    rank = max((pair.lora_a.shape[0] for pair in adapter.pairs.values()), default=1) or 1
    pairs = padded(adapter.pairs, rank)
    frozen = {f"{PREFIX}{name.removesuffix('.weight')}.base_layer.weight": tensor
              for name, tensor in adapter.contents.frozen.items()}
    return plain_tensors(pairs) | frozen, plain_config([adapter.config], pairs, rank)


def plain_tensors(pairs: Mapping[str, LoraPair]) -> dict[str, Tensor]:
    """The pairs by PEFT's names, in its shapes."""
    modules, experts = split_pairs(pairs)
    tensors = {}
    for name, each in experts.items():
        for part, tensor in to_file(*stacked(each)).items():
            tensors[f"{PREFIX}{written_module(name, experts)}.{part}"] = tensor.contiguous()
    for name, pair in modules.items():
        lora_a, lora_b = pair.lora_a, pair.lora_b
        if pair.kernel:
            lora_a = lora_a.reshape(lora_a.shape[0], -1, *pair.kernel)
            lora_b = lora_b.reshape(*lora_b.shape, *[1] * len(pair.kernel))
        parts = ("lora_embedding_A", "lora_embedding_B") if pair.embedding else ("lora_A.weight", "lora_B.weight")
        for part, tensor in zip(parts, (lora_a, lora_b), strict=True):
            tensors[f"{PREFIX}{name}.{part}"] = tensor.contiguous()
    return tensors


def plain_config(configs: Sequence[Mapping[str, Any]], pairs: Mapping[str, LoraPair], rank: int) -> dict[str, Any]:
    """adapter_config.json of `pairs` in this form; `configs` are those of the adapters that they come from."""
    first = configs[0]
    modules, experts = split_pairs(pairs)
    lists = [target_list(dict(config), []) for config in configs]
    targets = sorted({name for names in lists for name in names}) if all(lists) else sorted(modules)
    # by full names; and linear layers that PEFT finds only as parameters stay so
    parameters = {str(name) for config in configs for name in config.get("target_parameters") or ()}
    linear = sorted(name for name in modules if any(f".{name}.weight".endswith(f".{end}") for end in parameters))
    named = {"target_parameters": [*sorted(experts), *(f"{name}.weight" for name in linear)]} if parameters else {}
    if parameters:
        targets = sorted(name for name in modules if name not in linear)
    return {
        "peft_type": "LORA", "task_type": first.get("task_type") or "CAUSAL_LM",
        "base_model_name_or_path": first.get("base_model_name_or_path"), "r": rank, "lora_alpha": rank,
        "lora_dropout": first.get("lora_dropout") or 0.0, "target_modules": targets, "bias": "none",
        "fan_in_fan_out": bool(first.get("fan_in_fan_out")), "init_lora_weights": True, "inference_mode": True,
        "use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
        "layers_to_transform": None, "layers_pattern": None, "revision": None, **named,
    }
