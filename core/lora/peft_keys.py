"""The tensors of an adapter file by PEFT's names, sorted into what they mean.

    <module>.lora_A.weight, .lora_B.weight                 a pair; (r, in, k…) for a convolution
    <module>.lora_embedding_A, .lora_embedding_B           a pair of an embedding, (r, V) and (d, r)
    <module>[.base_layer].lora_A.weight, .lora_B.weight    the experts of a parameter; see `core.expert_names`
    <module>.lora_magnitude_vector                         DoRA's lengths
    <module>.token_adapter.trainable_tokens_delta          rows of single tokens, (n, d)
    <module>.base_layer.weight                             the frozen embedding, which PEFT writes beside its adapter
    <module>.base_layer.bias, <module>.weight, .bias, …    parameters that were trained whole
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.errors import AdapterError
from core.expert_names import expert_name, parameter_names
from core.lora.expert_layout import from_file
from core.patterns import pattern_value

PREFIX = "base_model.model."
_PARTS = re.compile(r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|"
                    r"lora_magnitude_vector|token_adapter\.trainable_tokens_delta)")
_FROZEN = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.base_layer\.(?P<name>weight|bias)")
_WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.(weight|bias)$")
_TOKENS = "token_adapter.trainable_tokens_delta"
_MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class LoraPair:
    """The update of one module's weight: `lora_a` (r, in), `lora_b` (out, r), alpha / r; for DoRA `magnitude` (out,).

    An embedding (V, d) is a weight that is stored as (in, out): `lora_a` is (r, V) and `lora_b` (d, r). A
    convolution with `kernel` (k, …) has in = channels · k · …, its weight is the update in the shape (out, in, k, …).
    """

    lora_a: Tensor
    lora_b: Tensor
    scale: float
    magnitude: Tensor | None = None
    embedding: bool = False
    kernel: tuple[int, ...] = ()

    def tensors(self) -> list[Tensor]:
        """Everything that it holds."""
        return [self.lora_a, self.lora_b, *([] if self.magnitude is None else [self.magnitude])]

    def delta(self) -> Tensor:
        """scale B A as (out, in) in fp32."""
        return self.scale * (self.lora_b.float() @ self.lora_a.float())


@dataclass(frozen=True)
class TokenRows:
    """Rows of an embedding or an output head that take the place of the base's: `values` (n, d) at `indices` (n)."""

    indices: tuple[int, ...]
    values: Tensor


@dataclass
class Contents:
    """What an adapter changes.

    pairs: low-rank updates by module.
    parameters: by the parameter's name, what takes its place whole (biases, saved modules).
    frozen: by the parameter's name, the base's own embeddings as PEFT writes them beside their adapter; they
        count for every module that shares them.
    rows: of single tokens, by module; they count for every module that shares the embedding.
    """

    pairs: dict[str, LoraPair] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    frozen: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, TokenRows] = field(default_factory=dict)

    def beside(self) -> dict[str, Tensor]:
        """Everything but the pairs, by a name of its own."""
        return self.frozen | self.parameters | {f"{name}.rows": rows.values for name, rows in self.rows.items()}


def sort_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> Contents:
    """Give every tensor of an adapter file its meaning.

    Args:
        tensors: by their keys in the file.
        config: adapter_config.json.
        where: the folder, for messages.

    Raises:
        AdapterError: a key with no meaning, half a pair, shapes that do not fit the config, numbers that are not
            finite.
    """
    contents = Contents()
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if _WRAPPED.search(key) and _WRAPPED.sub(r".\2", key) in tensors:  # PEFT writes a grown head twice
            continue
        name = key.removeprefix(PREFIX)
        if name == key or not _has_meaning(name, config):
            raise AdapterError(f"The adapter in {where} holds {key}, which is not a LoRA matrix and no part of a "
                               "model.", "It was made by another method or another program.")
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"The adapter in {where} holds numbers that are not finite in {key}.")
        part, frozen = _PARTS.fullmatch(name), _FROZEN.fullmatch(name)
        if part is not None:
            parts.setdefault(part["module"], {})[part["part"]] = tensor
        elif frozen is None:
            contents.parameters[name] = tensor
        else:
            kind = contents.frozen if frozen["name"] == "weight" else contents.parameters
            kind[f"{frozen['module']}.{frozen['name']}"] = tensor
    experts = parameter_names(parts, config, where)
    for module, found in parts.items():
        if module in experts:
            contents.pairs |= _expert_pairs(experts[module], module, found, config, where)
        elif _TOKENS in found:
            if not _is_tied_copy(module, parts, config):
                contents.rows[module] = _rows(module, found, config, where)
        else:
            contents.pairs[module] = _pair(module, found, config, where)
    return contents


def _has_meaning(name: str, config: Mapping[str, Any]) -> bool:
    if _PARTS.fullmatch(name) or _FROZEN.fullmatch(name):
        return True
    module, dot, parameter = name.rpartition(".")
    if not dot or "lora_" in name or "base_layer" in name or "token_adapter" in name:
        return False
    saved = config.get("modules_to_save") or []
    return parameter in ("weight", "bias") or any(f".{module}".find(f".{each}") >= 0 for each in saved)


def _is_tied_copy(module: str, parts: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]) -> bool:
    """PEFT may write the rows of an embedding once more for the head that shares it, which its config does not name."""
    given = config.get("trainable_token_indices")
    if not isinstance(given, dict) or any(module.endswith(str(name)) for name in given):
        return False
    named = [found for other, found in parts.items() if any(other.endswith(str(name)) for name in given)]
    return set(parts[module]) == {_TOKENS} and any(
        _TOKENS in found and torch.equal(found[_TOKENS], parts[module][_TOKENS]) for found in named)


def _rows(module: str, found: dict[str, Tensor], config: Mapping[str, Any], where: str) -> TokenRows:
    given = config.get("trainable_token_indices")
    if isinstance(given, dict):
        given = next((value for name, value in given.items() if module.endswith(str(name))), None)
    indices = [index for index in given if isinstance(index, int) and index >= 0] if isinstance(given, list) else []
    values = found[_TOKENS]
    if set(found) != {_TOKENS} or values.ndim != 2 or not len(set(indices)) == len(values) == len(given or []):
        raise AdapterError(f"The adapter in {where} holds rows of tokens for {module}, but its "
                           "trainable_token_indices do not say which tokens.", "The file is incomplete.")
    return TokenRows(tuple(indices), values)


def _expert_pairs(parameter: str, module: str, found: dict[str, Tensor], config: Mapping[str, Any],
                  where: str) -> dict[str, LoraPair]:
    """The update of every expert of a parameter, named "….experts.down_proj.3"."""
    if set(found) != {"lora_A.weight", "lora_B.weight"}:
        raise AdapterError(f"The adapter in {where} holds only half of {module}.", "The file is incomplete.")
    rank, scale = _rank_and_scale(parameter, config, where)
    lora_a, lora_b = found["lora_A.weight"], found["lora_B.weight"]
    stacks = from_file(lora_a, lora_b, rank)
    if stacks is None:
        raise AdapterError(f"The adapter in {where} says rank {rank} for the experts of {parameter} but holds "
                           f"A {tuple(lora_a.shape)} and B {tuple(lora_b.shape)}.")
    return {expert_name(parameter, number): LoraPair(own_a, own_b, scale)
            for number, (own_a, own_b) in enumerate(zip(*stacks, strict=True))}


def _rank_and_scale(name: str, config: Mapping[str, Any], where: str) -> tuple[int, float]:
    rank = int(pattern_value(config.get("rank_pattern"), name, config.get("r", 0)))
    alpha = float(pattern_value(config.get("alpha_pattern"), name, config.get("lora_alpha", 0)))
    if rank < 1:
        raise AdapterError(f"The adapter in {where} says rank {rank} for {name}.")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise AdapterError(f"The adapter in {where} has an alpha that is not finite.")
    return rank, scale


def _pair(module: str, found: dict[str, Tensor], config: Mapping[str, Any], where: str) -> LoraPair:
    embedding = "lora_embedding_A" in found or "lora_embedding_B" in found
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    wanted = {*names} | ({_MAGNITUDE} if config.get("use_dora") else set())
    if set(found) != wanted:
        raise AdapterError(f"The adapter in {where} holds only half of {module}.", "The file is incomplete.")
    lora_a, lora_b = found[names[0]], found[names[1]]
    kernel = tuple(lora_a.shape[2:])
    rank, scale = _rank_and_scale(module, config, where)
    if lora_a.ndim < 2 or lora_b.ndim != lora_a.ndim or not lora_a.shape[0] == lora_b.shape[1] == rank \
            or lora_b.shape[2:].numel() != 1:
        raise AdapterError(f"The adapter in {where} says rank {rank} for {module} but holds "
                           f"A {tuple(lora_a.shape)} and B {tuple(lora_b.shape)}.")
    magnitude = found.get(_MAGNITUDE)
    if magnitude is not None and (magnitude.shape != lora_b.shape[:1] or embedding or kernel):
        raise AdapterError(f"The adapter in {where} has a magnitude of {tuple(magnitude.shape)} for {module}, which "
                           f"has {lora_b.shape[0]} outputs." if not embedding and not kernel else
                           f"The adapter in {where} puts DoRA on {module}, which is not a linear layer.")
    return LoraPair(lora_a.flatten(1), lora_b.flatten(1), scale, magnitude, embedding, kernel)
