"""Whether an adapter fits a model, told from the shapes of its tensors and the model's module table alone."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from core.errors import AdapterError
from core.lora.expert_pairs import names_of, split_pairs
from core.lora.peft_keys import Contents
from core.records import ModuleInfo
from core.targets import ADAPTABLE, NAMED_ONLY

_Shapes = Mapping[tuple[str, bool], tuple[int, int]]


def misfit(contents: Contents, modules: Sequence[ModuleInfo]) -> str:
    """Why an adapter does not fit a model with these modules, naming the module; "" where it does.

    Loading it and looking for its base ask the same, so that what is found can be loaded.
    """
    table = {info.name: info for info in modules}
    return _pair_misfit(contents, modules) or _experts_misfit(contents, table) \
        or _whole_misfit(contents.parameters | contents.frozen, table) or _rows_misfit(contents, table)


def _pair_misfit(contents: Contents, modules: Sequence[ModuleInfo]) -> str:
    shapes = _shapes(contents, modules)
    others = {info.name for info in modules}
    for name, pair in contents.pairs.items():
        wanted, has = (pair.lora_a.shape[1], pair.lora_b.shape[0]), shapes.get((name, pair.embedding))
        if has is None and name in others:
            return f"{name} is there of a kind that can not be adapted"
        if has != wanted:
            return f"{name} should take and give {wanted} but {f'is {has}' if has else 'does not exist there'}"
    return ""


def _shapes(contents: Contents, modules: Sequence[ModuleInfo]) -> _Shapes:
    """(in, out) of every module that can be adapted, by its name and whether it is an embedding."""
    # rows of the embeddings and heads that the adapter makes larger or gives anew
    sizes = {name.rpartition(".")[0]: value.shape[0]
             for name, value in (contents.frozen | contents.parameters).items() if name.endswith(".weight")}
    found = {}
    for info in modules:
        if info.type not in (*ADAPTABLE, *NAMED_ONLY):
            continue
        inside, outside = info.in_features, info.out_features
        if info.is_input_embedding:
            inside = sizes.get(info.name, inside)
        elif info.is_output_head:
            outside = sizes.get(info.name, sizes.get(info.tied_to, outside))
        found |= {(name, info.type == "Embedding"): (inside, outside) for name in names_of(info)}
    return found


def _experts_misfit(contents: Contents, table: Mapping[str, ModuleInfo]) -> str:
    try:
        _, experts = split_pairs(contents.pairs)
    except AdapterError as error:
        return error.message[:1].lower() + error.message[1:].rstrip(".")
    return next((f"{name} has {table[name].experts} experts there, the adapter changes {len(pairs)}"
                 for name, pairs in experts.items() if len(pairs) != table[name].experts), "")


def _whole_misfit(parameters: Mapping[str, Tensor], table: Mapping[str, ModuleInfo]) -> str:
    for name, value in parameters.items():
        module, _, parameter = name.rpartition(".")
        info = table.get(module)
        shape = dict(info.tensors).get(parameter) if info is not None else None
        if info is None or shape is None:
            return f"{name} should be {tuple(value.shape)} but does not exist there"
        grown = (info.is_input_embedding or info.is_output_head) \
            and tuple(value.shape[1:]) == shape[1:] and value.shape[0] > shape[0]
        if tuple(value.shape) != shape and not grown:
            return f"{name} should be {tuple(value.shape)} but is {shape}"
    return ""


def _rows_misfit(contents: Contents, table: Mapping[str, ModuleInfo]) -> str:
    for name, rows in contents.rows.items():
        info = table.get(name)
        if info is None or not (info.is_input_embedding or info.is_output_head) \
                or rows.values.shape[1] != info.tensors[0][1][-1]:
            return f"single rows of {name} are changed, which does not exist there in this size"
    return ""
