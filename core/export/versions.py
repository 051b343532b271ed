"""The versions of a model that a receipt compares, one after the other, never two in memory.

"adapter" is base + adapter as the person tried it; "rounded" the same with its numbers rounded as
in the files; "export" what was read back from the disk. Where nothing is rounded, "rounded" is left out.
"""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.errors import ModelError
from core.export.cases import AdapterCase, MergedCase
from core.export.change import changed_rows, source_rows
from core.export.expert_plan import gathered, is_gathered
from core.export.keys import match_keys, skeleton
from core.export.merge import expected_rows
from core.export.plan import MergePlan, PlannedTensor
from core.export.probe import LayeredRunner, Runner, WeightSource, WholeRunner, set_everywhere
from core.export.rounding import settled_update
from core.export.shards import TORCH_DTYPES, TensorReader, TensorRecord, read_checkpoint
from core.lora.adapter_file import LoraPair
from core.lora.attach import load_adapter
from core.lora.beside_load import BesideLayers
from core.lora.dora import DoraLayer
from core.lora.expert_pairs import put_on_experts, split_pairs
from core.lora.experts import base_parameter, expert_matrices
from core.lora.extra import extras
from core.lora.extra_files import Extras
from core.lora.extra_load import fitted_extras
from core.lora.inject import lora_layers, remove
from core.lora.layers import LoraLayer
from core.lora.token_rows import token_modules
from core.lora.whole import whole_parameters
from core.models.load import load_model

Version = Literal["adapter", "rounded", "export"]


def fits_whole(case: MergedCase | AdapterCase) -> bool:
    """True if the model needs less than half of the free memory."""
    return _model_bytes(case.base, case.arithmetic) < psutil.virtual_memory().available / 2


def _model_bytes(base: Path, arithmetic: torch.dtype) -> int:
    return arithmetic.itemsize * sum(record.elements for record in read_checkpoint(base).tensors.values())


def merged_versions(case: MergedCase, *, whole: bool) -> Iterator[tuple[Version, Runner]]:
    """The versions of a merged export. Use and drop each before asking for the next."""
    return _merged_whole(case) if whole else _merged_layered(case)


def adapter_versions(case: AdapterCase, *, whole: bool) -> Iterator[tuple[Version, Runner]]:
    """The versions of an exported adapter. Use and drop each before asking for the next."""
    return _adapter_whole(case) if whole else _adapter_layered(case)


def _merged_whole(case: MergedCase) -> Iterator[tuple[Version, Runner]]:
    device = _device(_model_bytes(case.base, case.arithmetic))
    model = load_model(case.base, device, case.arithmetic)
    if case.has_adapter:
        load_adapter(case.adapter, model)
    for layer in [*lora_layers(model).values(), *expert_matrices(model).values(), *token_modules(model).values()]:
        layer.to(case.arithmetic)
    yield "adapter", WholeRunner(model)
    if case.is_rounded and _changes_updates_only(case.plan):
        _round_merged(model, case)
        yield "rounded", WholeRunner(model)
    elif case.is_rounded:
        del model
        _free()
        model = _assembled(case)
        nn.Module.to(model, device)
        yield "rounded", WholeRunner(model)
    del model
    _free()
    yield "export", WholeRunner(load_model(case.export, device, case.arithmetic))
    _free()


def _adapter_whole(case: AdapterCase) -> Iterator[tuple[Version, Runner]]:
    model = load_model(case.base, _device(_model_bytes(case.base, case.arithmetic)), case.arithmetic)
    load_adapter(case.adapter, model)
    yield "adapter", WholeRunner(model)
    if case.is_rounded:
        _round_adapter(model, case)
        yield "rounded", WholeRunner(model)
    remove(model)
    load_adapter(case.export, model)
    yield "export", WholeRunner(model)
    del model
    _free()


def _merged_layered(case: MergedCase) -> Iterator[tuple[Version, Runner]]:
    with TensorReader() as reader:
        if _changes_updates_only(case.plan):
            model = skeleton(case.base)
            yield "adapter", LayeredRunner(model, _stored(case, case.base, model, reader), case.pairs)
        else:
            yield "adapter", LayeredRunner(skeleton(case.export), _planned(case, reader, rounded=False), {})
        if case.is_rounded:
            yield "rounded", LayeredRunner(skeleton(case.export), _planned(case, reader), {})
        model = skeleton(case.export)
        yield "export", LayeredRunner(model, _stored(case, case.export, model, reader), {})


def _adapter_layered(case: AdapterCase) -> Iterator[tuple[Version, Runner]]:
    with TensorReader() as reader:
        if case.contents.beside() or any(pair.embedding for pair in case.pairs.values()):
            raise ModelError("What the adapter changes beside its updates can not be run layer by layer.",
                             "Free some memory, so that the model fits whole.")
        versions: list[tuple[Version, dict[str, LoraPair], Extras]] = [
            ("adapter", case.pairs, case.extras), ("export", case.exported, case.exported_extras)]
        if case.is_rounded:
            rounded = case.extras.rounded_like(case.exported_extras)
            versions.insert(1, ("rounded", _rounded_pairs(case), rounded))
        for name, pairs, extras in versions:
            model = skeleton(case.base)
            beside = fitted_extras(extras, model)
            runner = LayeredRunner(model, _stored(case, case.base, model, reader), pairs)
            for extra in beside:
                extra.hang()
            yield name, runner


def _device(needed_bytes: int) -> torch.device:
    """A CUDA card where the model fits easily beside what else is on it, else the CPU."""
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 1.5 * needed_bytes + 2**30:
        return torch.device("cuda:0")
    return torch.device("cpu")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@torch.no_grad()
def _round_merged(model: PreTrainedModel, case: MergedCase) -> None:
    """Turn base + adapter in memory into the merged model, its numbers rounded as planned."""
    types = {case.keys.converted.get(tensor.source.name, tensor.parameter): TORCH_DTYPES[tensor.spec.dtype]
             for tensor in case.plan.tensors}
    with TensorReader() as reader:
        written = _stored(case, case.export, skeleton(case.export), reader)

        def merged(pair: LoraPair, name: str, weight: Tensor, transposed: bool) -> Tensor:
            return settled_update(pair, weight, written(name), transposed, types[name]).to(weight)

        for name, layer in lora_layers(model).items():
            weight = merged(_pair_of(layer), f"{name}.weight", layer.weight, isinstance(layer.base, Conv1D))
            # a new parameter: a tied embedding keeps the old one
            layer.base.weight = nn.Parameter(weight, requires_grad=False)
        for name, matrix in expert_matrices(model).items():
            pair = LoraPair(matrix.lora_a, matrix.lora_b, matrix.scale)
            values = model.get_parameter(base_parameter(name))
            values.copy_(merged(pair, name, values, name in case.keys.transposed))
    remove(model)
    for name, parameter in model.named_parameters():
        if name in types:  # rounding the merged ones again changes nothing
            parameter.copy_(_rounded(parameter, types[name]))


def _changes_updates_only(plan: MergePlan) -> bool:
    """True where the adapter is low-rank updates of linear layers and nothing else."""
    return all(not tensor.change or (tensor.change.is_update and (tensor.pair is None or not tensor.pair.embedding))
               for tensor in plan.tensors)


def _assembled(case: MergedCase) -> PreTrainedModel:
    """The merged model from base and adapter, its numbers rounded as planned."""
    model = skeleton(case.export)
    with TensorReader() as reader:
        weights = _planned(case, reader)
        for name, parameter in list(model.named_parameters(remove_duplicate=True)):
            set_everywhere(model, parameter, weights(name))
    return model


def _pair_of(layer: LoraLayer) -> LoraPair:
    return LoraPair(layer.lora_a, layer.lora_b, layer.scale, layer.magnitude if isinstance(layer, DoraLayer) else None)


@torch.no_grad()
def _round_adapter(model: PreTrainedModel, case: AdapterCase) -> None:
    for name, layer in lora_layers(model).items():
        wanted = (case.rounded or case.pairs)[name]
        if wanted.lora_a.shape != layer.lora_a.shape or wanted.scale != layer.scale or case.rounded:
            layer.lora_a = nn.Parameter(wanted.lora_a.to(layer.lora_a.device, layer.lora_a.dtype, copy=True))
            layer.lora_b = nn.Parameter(wanted.lora_b.to(layer.lora_b.device, layer.lora_b.dtype, copy=True))
            layer.scale = wanted.scale
        for own, exported in zip(_pair_of(layer).tensors(), case.exported[name].tensors(), strict=True):
            own.copy_(_rounded(own, exported.dtype))
    _round_experts(model, case)
    exported = case.exported_contents.beside()
    for name, whole in whole_parameters(model).items():
        if name in exported:
            whole.value.copy_(_rounded(whole.value, exported[name].dtype))
    for name, module in token_modules(model).items():
        if module.values is not None and f"{name}.rows" in exported:
            module.values.copy_(_rounded(module.values, exported[f"{name}.rows"].dtype))
    beside = fitted_extras(case.extras.rounded_like(case.exported_extras), model)
    for extra in extras(model):
        if not isinstance(extra, BesideLayers):  # whose numbers were rounded in their places
            extra.take_out()
    for extra in beside:
        extra.hang()


def _round_experts(model: PreTrainedModel, case: AdapterCase) -> None:
    _, written = split_pairs(case.exported)
    _, wanted = split_pairs(case.rounded or case.pairs)
    put_on_experts(model, {name: [
        replace(pair, lora_a=_rounded(pair.lora_a, new.lora_a.dtype), lora_b=_rounded(pair.lora_b, new.lora_b.dtype))
        for pair, new in zip(pairs, written[name], strict=True)] for name, pairs in wanted.items()})


def _rounded_pairs(case: AdapterCase) -> dict[str, LoraPair]:
    if case.rounded is not None:
        return case.rounded
    return {name: LoraPair(pair.lora_a.to(new.lora_a.dtype), pair.lora_b.to(new.lora_b.dtype), pair.scale,
                           None if pair.magnitude is None or new.magnitude is None
                           else pair.magnitude.to(new.magnitude.dtype))
            for name, pair in case.pairs.items() for new in [case.exported[name]]}


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).to(tensor.dtype)


def _stored(case: MergedCase | AdapterCase, folder: Path, model: PreTrainedModel, reader: TensorReader) -> WeightSource:
    """Parameters as they lie in the files of `folder`."""
    tensors = read_checkpoint(folder).tensors
    keys = match_keys(model, tensors)
    records: dict[str, TensorRecord] = {parameter: tensors[key] for key, parameter in keys.parameter_of.items()}

    def read(parameter: str) -> Tensor:
        found = next((name for name in [parameter, *sorted(keys.tied_group(parameter))] if name in records), None)
        if found is None and is_gathered(keys, parameter):
            return gathered(keys, parameter, lambda key: reader.whole(tensors[key])).to(case.arithmetic)
        if found is None:
            raise _not_plain(parameter)
        return reader.whole(records[found]).to(case.arithmetic)

    return read


def _planned(case: MergedCase, reader: TensorReader, *, rounded: bool = True) -> WeightSource:
    """Parameters computed anew from base and adapter, rounded as planned or not at all."""
    tensors = {tensor.parameter: tensor for tensor in case.plan.tensors if tensor.parameter}
    by_key = {tensor.source.name: tensor for tensor in case.plan.tensors}
    written = read_checkpoint(case.export).tensors

    def compute(parameter: str) -> Tensor:
        found = next((name for name in [parameter, *sorted(case.keys.tied_group(parameter))] if name in tensors), None)
        if found is None and is_gathered(case.keys, parameter):
            return gathered(case.keys, parameter, lambda key: one(by_key[key]))
        if found is None:
            raise _not_plain(parameter)
        return one(tensors[found])

    def one(tensor: PlannedTensor) -> Tensor:
        rows = tensor.spec.shape[0] if tensor.spec.shape else 1
        whole = source_rows(tensor, reader, 0, rows).reshape(tensor.spec.shape)
        if not rounded:
            return (changed_rows(tensor, whole, 0, rows)[0] if tensor.change else whole).to(case.arithmetic)
        if tensor.change.is_update and tensor.pair is not None:
            found = reader.whole(_record_of(written, tensor))
            return settled_update(tensor.pair, whole, found, tensor.transposed, TORCH_DTYPES[tensor.spec.dtype]).float()
        return expected_rows(tensor, whole, 0, rows).float()

    return compute


def _record_of(written: dict[str, TensorRecord], tensor: PlannedTensor) -> TensorRecord:
    record = written.get(tensor.spec.name)
    if record is None:
        raise ModelError(f"The export lacks {tensor.spec.name}.")
    return record


def _not_plain(parameter: str) -> ModelError:
    return ModelError(f"{parameter} is stored in another form, so the layers can not be run one by one.")
