"""What a merge will write, decided before the first byte: every tensor, its type, its shard."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from core.errors import AdapterError, ModelError
from core.export.expert_plan import plan_experts
from core.export.keys import ModelKeys
from core.export.shards import FLOATING, SINGLE_NAME, Checkpoint, TensorRecord, TensorSpec, in_file_order
from core.export.wanted import NOTHING, Change, vocabulary_of, wanted_changes
from core.lora.expert_pairs import split_pairs
from core.lora.peft_keys import Contents, LoraPair

WrittenDtype = Literal["base", "fp32", "bf16", "fp16"]
SAFETENSORS_DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor to be written: `spec` from `source`, with what the adapter changes in it.

    `parameter` is its name in the model ("" where the model has no use for it); `transposed`
    says that it is stored as (in, out). The pair of a tensor that holds all experts is three-dimensional.
    """

    spec: TensorSpec
    source: TensorRecord
    parameter: str
    change: Change = NOTHING
    transposed: bool = False

    @property
    def pair(self) -> LoraPair | None:
        """The low-rank part of the change."""
        return self.change.pair


@dataclass(frozen=True)
class PlannedShard:
    """One file to be written, its tensors in the order of the file."""

    name: str
    tensors: tuple[PlannedTensor, ...]
    metadata: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.spec.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class MergePlan:
    """All files to be written. `index` is None for a single file; `untied` when a shared head became its own;
    `vocabulary` is the number of tokens where it grew."""

    shards: tuple[PlannedShard, ...]
    index: dict[str, Any] | None
    untied: bool
    vocabulary: int | None = None

    @property
    def tensors(self) -> list[PlannedTensor]:
        """Every tensor, shard by shard."""
        return [tensor for shard in self.shards for tensor in shard.tensors]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(shard.nbytes for shard in self.shards)


def plan_merge(checkpoint: Checkpoint, keys: ModelKeys, contents: Contents, dtype: WrittenDtype,
               shard_bytes: int = 0) -> MergePlan:
    """Decide what is written for base + adapter.

    Args:
        checkpoint: the base's weight files.
        keys: `match_keys` of that checkpoint.
        contents: what the adapter changes.
        dtype: "base" keeps each tensor's type; else every floating tensor gets this one.
        shard_bytes: 0 keeps the base's shards; else a new shard begins before it would grow larger.

    Raises:
        AdapterError: a change that belongs to no tensor of the base, or does not fit it.
        ModelError: the base holds quantised or unknown number types where they must be changed.
    """
    keys_of = {parameter: key for key, parameter in keys.parameter_of.items()}
    modules, experts = split_pairs(contents.pairs)
    wanted, untied = wanted_changes(replace(contents, pairs=modules), keys, keys_of)
    of_experts = plan_experts(checkpoint, keys, experts)
    extra = _untied_tensors(checkpoint, keys, keys_of, untied)
    for parameter, change in wanted.items():
        if parameter not in keys_of and all(parameter != name for name, _ in extra):
            raise _no_home(parameter, keys)
        _check_shapes(parameter, change, keys)

    def planned(record: TensorRecord, parameter: str, name: str) -> PlannedTensor:
        used = bool(parameter) or record.name in keys.converted  # what the model does not load stays as it is
        change = wanted.get(parameter) or Change(pair=of_experts.get(record.name))
        shape = (change.length(record.shape[0]), *record.shape[1:]) if change else record.shape
        spec = TensorSpec(name, _written_dtype(record, dtype if used else "base"), shape)
        return PlannedTensor(spec, record, parameter, change, parameter in keys.transposed)

    shards = []
    for shard in checkpoint.shards:
        tensors = [planned(record, keys.parameter_of.get(record.name, ""), record.name) for record in shard.tensors]
        tensors += [planned(record, name, name) for name, record in extra if record.shard == shard.path]
        shards.append(PlannedShard(shard.path.name, tuple(tensors), shard.metadata or {"format": "pt"}))
    for tensor in (tensor for shard in shards for tensor in shard.tensors if tensor.change):
        if tensor.source.dtype not in FLOATING:
            raise ModelError(f"{tensor.source.name} is stored as {tensor.source.dtype}; an adapter can not be merged "
                             "into quantised weights.", "Export the adapter, or train on the unquantised model.")
    if shard_bytes > 0:
        shards = _repack([tensor for shard in shards for tensor in shard.tensors], shard_bytes, shards[0].metadata)
    shards = [_ordered(shard) for shard in shards]
    return MergePlan(tuple(shards), _index(shards, checkpoint), bool(untied), vocabulary_of(wanted, keys))


def _untied_tensors(checkpoint: Checkpoint, keys: ModelKeys, keys_of: dict[str, str],
                    untied: set[str]) -> list[tuple[str, TensorRecord]]:
    """Tensors that the files lack once each parameter of a shared group must stand for itself."""
    records = checkpoint.tensors
    extra = []
    for parameter in sorted(untied):
        group = sorted(keys.tied_group(parameter))
        stored = [name for name in group if name in keys_of]
        if not stored:
            raise _no_home(parameter, keys)
        extra += [(name, records[keys_of[stored[0]]]) for name in group if name not in keys_of]
    return list(dict(extra).items())


def _no_home(parameter: str, keys: ModelKeys) -> AdapterError:
    module = parameter.removesuffix(".weight")
    if parameter in keys.converted.values():
        return AdapterError(f"The adapter changes {module}, which the base's files store in another form.",
                            "Export the adapter instead; this part can not be merged.")
    return AdapterError(f"The adapter changes {module}, but the base model's files hold no such weight.",
                        "Choose the base model that the adapter was trained on.")


def _check_shapes(parameter: str, change: Change, keys: ModelKeys) -> None:
    has = keys.shapes.get(parameter)
    if has is not None:
        length = change.length(has[0]) if parameter in keys.vocabulary else has[0]
        if (change.value is not None and tuple(change.value.shape) != (length, *has[1:])) or (
                change.rows is not None and (len(has) != 2 or change.rows.values.shape[1] != has[1])):
            raise AdapterError(f"The adapter changes {parameter} in another size than {has}.",
                               "Choose the base model that the adapter was trained on.")
        has = (length, *has[1:])
    if change.pair is not None:
        _check_pair(parameter, change.pair, has, transposed=parameter in keys.transposed)


def _check_pair(parameter: str, pair: LoraPair, has: tuple[int, ...] | None, transposed: bool) -> None:
    shape = (pair.lora_b.shape[0], pair.lora_a.shape[1])
    if has is None or (has[::-1] if transposed else (has[0], math.prod(has[1:]))) != shape:
        raise AdapterError(f"The adapter's update of {parameter.removesuffix('.weight')} is {shape}, "
                           f"but the weight is {has}.", "Choose the base model that the adapter was trained on.")


def _written_dtype(record: TensorRecord, dtype: WrittenDtype) -> str:
    if dtype == "base" or record.dtype not in FLOATING:
        return record.dtype
    return SAFETENSORS_DTYPES[dtype]


def _repack(tensors: Sequence[PlannedTensor], shard_bytes: int, metadata: dict[str, str]) -> list[PlannedShard]:
    groups: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.spec.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.spec.nbytes
    if len(groups) == 1:
        return [PlannedShard(SINGLE_NAME, tuple(groups[0]), metadata)]
    return [PlannedShard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", tuple(group), metadata)
            for number, group in enumerate(groups, 1)]


def _ordered(shard: PlannedShard) -> PlannedShard:
    order = in_file_order([tensor.spec for tensor in shard.tensors])
    return replace(shard, tensors=tuple(shard.tensors[position] for position in order))


def _index(shards: Sequence[PlannedShard], checkpoint: Checkpoint) -> dict[str, Any] | None:
    if len(shards) == 1 and shards[0].name == SINGLE_NAME:
        return None
    old = checkpoint.index or {}
    metadata = old.get("metadata") if isinstance(old.get("metadata"), dict) else {}
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    metadata = {**(metadata or {}), "total_size": sum(tensor.spec.nbytes for tensor in tensors)}
    if "total_parameters" in metadata:
        grown = sum(math.prod(tensor.spec.shape) for tensor in tensors) - sum(
            record.elements for record in checkpoint.tensors.values())
        metadata["total_parameters"] = int(metadata["total_parameters"]) + grown
    places = {tensor.spec.name: shard.name for shard in shards for tensor in shard.tensors}
    return {**old, "metadata": metadata, "weight_map": dict(sorted(places.items()))}


