"""What a run trains beside the low-rank updates: biases, whole modules, and rows of new tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.beside import token_places, trained_whole
from core.config import LowRankConfig, PatternedConfig
from core.errors import AdapterError
from core.lora.inject import lora_layers, module_table
from core.lora.method import Material, Method, ParameterGroup
from core.lora.token_rows import TokenEmbedding, TokenHead, put_rows, token_modules
from core.lora.whole import WholeParameter, frozen_value, put_whole, trained_parameters, unwrapped, whole_parameters
from core.records import ModuleInfo


class Beside(Method):
    """The options that stand beside the updates of any low-rank method; their tensors are in the same file."""

    def __init__(self, adapter: LowRankConfig) -> None:
        self.adapter = adapter
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def install(self, model: PreTrainedModel, material: Material) -> None:
        """Behind the updates. Raises AdapterError where something does not fit this model."""
        modules = module_table(model)
        adapted = lora_layers(model)
        targets = [module for module in modules if module.name in adapted]
        _install_whole(model, modules, targets, self.adapter)
        places = token_places(modules, self.adapter)
        if places and isinstance(self.adapter, PatternedConfig):
            assert material.tokenizer is not None, "new tokens need the tokenizer that has them"
            self._tokenizer = material.tokenizer
            _install_tokens(model, places, self.adapter.new_tokens, material)

    def groups(self, model: PreTrainedModel) -> list[ParameterGroup]:
        """The whole parameters, and the rows of tokens."""
        rows = {f"{name}.values": module.values for name, module in token_modules(model).items()
                if module.values is not None}
        return [ParameterGroup(trained_parameters(whole_parameters(model))), ParameterGroup(rows)]

    def write(self, folder: Path, model: PreTrainedModel, dtype: torch.dtype, base_name: str,
              origin: dict[str, Any]) -> None:
        """The tokenizer that has the new tokens; the tensors are written with the updates."""
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> frozenset[str]:
    """Teach `tokenizer` those of `tokens` that it lacks, and return them.

    Raises:
        AdapterError: an empty one, or one that can not be added.
    """
    for token in tokens:
        if not token.strip():
            raise AdapterError("A new token is empty.", "Leave it out.")
    if not tokens:
        return frozenset()  # the vocabulary need not be listed
    known = tokenizer.get_vocab().keys()
    new = [token for token in tokens if token not in known]
    if new and tokenizer.add_tokens(new, special_tokens=True) != len(new):
        raise AdapterError("Some of the new tokens could not be added to the tokenizer.", "Name each of them once.")
    return frozenset(new)


def _install_whole(model: nn.Module, modules: Sequence[ModuleInfo], targets: Sequence[ModuleInfo],
                   adapter: LowRankConfig) -> None:
    put: dict[str, WholeParameter] = {}
    for each in trained_whole(modules, targets, adapter):
        owner = unwrapped(model.get_submodule(each.module))
        put[each.name] = put.get(each.shared_with) or WholeParameter(frozen_value(owner, each.parameter))
    for name, whole in put.items():
        put_whole(model, name, whole)


def _install_tokens(model: PreTrainedModel, places: Sequence[ModuleInfo], tokens: Sequence[str],
                    material: Material) -> None:
    """Each new row begins as the mean of the rows of the tokens that the text was before, an old one as it is."""
    assert material.tokenizer is not None
    vocabulary = material.tokenizer.get_vocab()
    ids = [vocabulary[token] for token in tokens]
    # a tokenizer may know tokens that lie above the model's rows; for the model they are new
    height = min(frozen_value(unwrapped(model.get_submodule(place.name))).shape[0] for place in places)
    new = {vocabulary[token] for token in tokens if token in material.added_tokens or vocabulary[token] >= height}
    pieces = [[piece for piece in _old_pieces(material.tokenizer, token, new) if piece < height] if number in new
              else [number] for token, number in zip(tokens, ids, strict=True)]
    embedding: TokenEmbedding | None = None
    for place in sorted(places, key=lambda place: not place.is_input_embedding):
        base = model.get_submodule(place.name)
        weight = frozen_value(unwrapped(base))
        values = torch.stack([_mean_row(weight, piece) for piece in pieces])
        if place.is_input_embedding:
            embedding = TokenEmbedding(base, ids, values)
            put_rows(model, place.name, embedding)
        else:
            put_rows(model, place.name, TokenHead(base, ids, values))
    head = next((module for module in module_table(model) if module.is_output_head and module.tied_to), None)
    if head is not None and embedding is not None:
        put_rows(model, head.name, TokenHead(model.get_submodule(head.name), ids, None, embedding))


def _mean_row(weight: Tensor, pieces: Sequence[int]) -> Tensor:
    rows = weight[list(pieces)] if pieces else weight
    return rows.float().mean(dim=0)


def _old_pieces(tokenizer: PreTrainedTokenizerBase, token: str, new: set[int]) -> list[int]:
    """The tokens of the words in `token`, read as they were before it was one token."""
    words = " ".join("".join(sign if sign.isalnum() else " " for sign in token).split())
    return [piece for piece in tokenizer.encode(words, add_special_tokens=False) if piece not in new]
