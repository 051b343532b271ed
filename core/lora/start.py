"""A run that goes on from an adapter: its numbers become the start, if it is exactly of the form of the run.

The model tells what is trained, whatever method put it there. Everything is compared before anything is copied.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.adapter_folder import ADALORA_TYPE
from core.config import RunConfig, StartableConfig
from core.errors import AdapterError
from core.lora.adalora_start import begin_triplets
from core.lora.adapter_file import AdapterFile, read_adapter
from core.lora.beside_load import is_the_base
from core.lora.bottleneck import bottleneck_layers
from core.lora.fit import misfit
from core.lora.inject import module_table
from core.lora.pair_start import SAME_TARGETS, begin_pairs
from core.lora.peft_keys import TokenRows
from core.lora.prefix import prefix_of
from core.lora.token_rows import token_modules
from core.lora.whole import whole_parameters
from core.records import ModuleInfo
from core.start import adapter_folder
from core.start_problem import start_problem

_SAME_BASE = "Choose that base model, or start from another adapter."
_Copy = Callable[[], object]


@torch.no_grad()
def start_from(model: PreTrainedModel, config: RunConfig, fingerprint: str) -> AdapterFile:
    """Copy the numbers of `adapter.start_from` over those of `model`; nothing is copied unless all of it fits.

    Args:
        model: with everything fresh, as the run's methods have put it on.
        config: of the run.
        fingerprint: of the base model.

    Raises:
        AdapterError: the adapter is damaged, of another base, method, rank or scale, or changes something else.
    """
    assert isinstance(config.adapter, StartableConfig)
    problem = start_problem(config)
    if problem is not None:
        raise AdapterError(problem[1], problem[2])
    file = read_adapter(adapter_folder(Path(config.adapter.start_from).expanduser()))
    trained_on = file.origin.get("base_fingerprint")
    if trained_on and trained_on != fingerprint:
        raise AdapterError(f"The adapter in {file.path} was trained on another base model.", _SAME_BASE)
    table = module_table(model)
    reason = misfit(file.contents, table) or start_gap(file, table)
    if reason:
        raise AdapterError(f"Training can not go on from {file.path}: {reason}.", "Start from another adapter.")
    is_adalora = file.config.get("peft_type") == ADALORA_TYPE
    copies = [*(begin_triplets(model, file) if is_adalora else begin_pairs(model, file.pairs)),
              *_wholes(model, file), *_rows(model, file), *_prefix(model, file), *_bottleneck(model, file)]
    for copy in copies:
        copy()
    return file


def start_gap(file: AdapterFile, modules: Sequence[ModuleInfo]) -> str:
    """Why training can not go on from an adapter that fits a model with these modules; "" where it can."""
    shapes = {f"{info.name}.{name}": shape for info in modules for name, shape in info.tensors}
    for name, value in (file.contents.parameters | file.contents.frozen).items():
        if shapes.get(name) != tuple(value.shape):
            return f"its {name} is larger than the base's, as its vocabulary was made larger"
    rows = _own_rows(file, modules)
    with_rows = {*rows, *(info.name for info in modules if info.tied_to in rows)}
    both = sorted(with_rows & {*file.pairs, *(name.rpartition(".")[0] for name in file.contents.parameters)})
    if both:
        return f"it changes {both[0]} as a whole and single rows of it as well"
    places = [info.name for info in modules
              if info.is_input_embedding or (info.is_output_head and not info.tied_to)]
    if rows and rows.keys() != set(places):
        return f"it trains the rows of its tokens in {', '.join(rows)} alone, and not in {', '.join(places)} alike"
    return ""


def _own_rows(file: AdapterFile, modules: Sequence[ModuleInfo]) -> dict[str, TokenRows]:
    """Rows of single tokens by module, without those that PEFT writes once more for a head that shares them."""
    rows = file.contents.rows
    tied = {info.name: info.tied_to for info in modules if info.tied_to}
    return {name: each for name, each in rows.items()
            if tied.get(name) not in rows or each.indices != rows[tied[name]].indices
            or not torch.equal(each.values, rows[tied[name]].values)}


def _wholes(model: PreTrainedModel, file: AdapterFile) -> list[_Copy]:
    """Biases and modules that are trained whole."""
    own, held = whole_parameters(model), file.contents.frozen | file.contents.parameters
    # PEFT may write the base's own embedding beside an adapter
    theirs = {name: value for name, value in held.items() if name in own or not is_the_base(name, value, model)}
    different = sorted(own.keys() ^ theirs.keys())
    if different:
        who = "The adapter to start from" if different[0] in own else "The run"
        raise AdapterError(f"{who} does not train {different[0]}.", "Train the same biases and modules whole.")
    for name, value in theirs.items():
        for other, same in theirs.items():
            if name < other and own[name] is own[other] and not torch.equal(value, same):
                raise AdapterError(f"{name} and {other} are one in this run, but differ in the adapter to start from.",
                                   "Switch Keep tied off.")
    return [_copy(name, own[name].value, value) for name, value in theirs.items()]


def _rows(model: PreTrainedModel, file: AdapterFile) -> list[_Copy]:
    """Rows of new tokens."""
    own = {name: module for name, module in token_modules(model).items() if module.values is not None}
    theirs = _own_rows(file, module_table(model))
    if own.keys() != theirs.keys():
        who = "The adapter to start from trains" if own.keys() < theirs.keys() else "The run trains"
        raise AdapterError(f"{who} rows of single tokens, the other does not.", "Set the same new tokens.")
    copies = []
    for name, rows in theirs.items():
        module = own[name]
        if sorted(module.indices) != sorted(rows.indices):
            raise AdapterError(f"The new tokens of the adapter to start from have other numbers in {name}.",
                               "Set the same new tokens in the same order.")
        assert module.values is not None
        copies.append(_copy(name, module.values, rows.values[[rows.indices.index(each) for each in module.indices]]))
    return copies


def _prefix(model: PreTrainedModel, file: AdapterFile) -> list[_Copy]:
    theirs, own = file.extras.prefix, prefix_of(model)
    if theirs is None:
        return []
    assert own is not None, "start_problem has told that the run trains no prefix"
    if own.geometry != theirs.geometry:
        raise AdapterError("The prefix of the adapter to start from is for a model of another shape.", _SAME_BASE)
    return [_copy("The prefix", own.embedding, theirs.values)]


def _bottleneck(model: PreTrainedModel, file: AdapterFile) -> list[_Copy]:
    theirs, own = file.extras.bottleneck, bottleneck_layers(model)
    if theirs is None:
        return []
    different = sorted(own.keys() ^ theirs.tensors.keys())
    if different:
        who = "The adapter to start from" if different[0] in own else "The run"
        raise AdapterError(f"{who} has no bottleneck adapter behind {different[0]}.", SAME_TARGETS)
    return [_copy(f"{module}.{part}", own[module].file_tensors()[part], tensor)
            for module, parts in theirs.tensors.items() for part, tensor in parts.items()]


def _copy(name: str, own: Tensor, value: Tensor) -> _Copy:
    """Copies `value`, which must have the shape of `own`."""
    if own.shape != value.shape:
        raise AdapterError(f"{name} has the shape {tuple(value.shape)} in the adapter to start from, but "
                           f"{tuple(own.shape)} in this run.", _SAME_BASE)
    return lambda: own.copy_(value)
