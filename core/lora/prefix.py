"""Prefix-Tuning: trained keys and values that every layer sees before the row (arXiv 2101.00190).

The prefix is the beginning of the key-value cache, and the tokens of the row take the positions behind it, as in
PEFT, so that files can be exchanged. A hook on the model's body does this for every caller: training on padded
and on packed rows, evaluation, chat, and answers to many prompts at once.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedModel

from core.adapter_folder import PREFIX_FOLDER, PREFIX_TYPE
from core.config import PrefixConfig
from core.errors import AdapterError
from core.extra_shapes import PROMPT_KEY, key_value_width
from core.lora.adapter_file import write_adapter
from core.lora.extra import ModelExtra
from core.lora.extra_files import Geometry, PrefixFile
from core.lora.inject import module_table
from core.lora.method import Material, Method, ParameterGroup

_NAME = "prefix_tuning"  # of the module in the model


def geometry_of(model: PreTrainedModel) -> Geometry:
    """Found from the shapes of the key projections; with grouped queries there are fewer heads than of queries.

    Raises:
        AdapterError: the model has no such layers.
    """
    layers, width = key_value_width(module_table(model))
    config = model.config.get_text_config()
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    if width % head_dim:
        raise AdapterError("This kind of model can not take a prefix: its heads are not of one size.",
                           "Leave out [prefix].")
    return Geometry(layers, width // head_dim, head_dim)


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """The module that takes tokens and a cache and runs the layers. Some models (OPT) call it past `base_model`."""
    body = model.get_decoder()
    body = body if isinstance(body, PreTrainedModel) else model.base_model
    assert isinstance(body, PreTrainedModel)
    return body


class TrainedPrefix(ModelExtra):
    """The prefix of one model.

    Args:
        geometry: of the model's keys and values.
        length: virtual tokens P.
        projection_size: inner width of the network that computes the prefix, 0 for none.
        generator: draws the start.

    `embedding` is (P, layers * 2 * width), the prefix itself; with the network (section 4.3 of the paper) it is
    (P, width), and the prefix is W2 tanh(W1 embedding + b1) + b2.
    """

    child_name = _NAME

    def __init__(self, geometry: Geometry, length: int, projection_size: int = 0,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.geometry = geometry
        self.length = length
        self.calls = 0  # of the body so far
        self.projection_size = projection_size
        out = 2 * geometry.layers * geometry.width
        width = geometry.width if projection_size else out
        self.embedding = nn.Parameter(torch.randn(length, width, generator=generator))
        if projection_size:
            self.inner, self.inner_bias = _linear(geometry.width, projection_size, generator)
            self.outer, self.outer_bias = _linear(projection_size, out, generator)

    def values(self) -> Tensor:
        """The prefix (P, layers * 2 * width): of every token the key and the value of layer 0, of layer 1, …"""
        if not self.projection_size:
            return self.embedding
        inner = torch.tanh(F.linear(self.embedding, self.inner, self.inner_bias))
        return F.linear(inner, self.outer, self.outer_bias)

    def states(self, rows: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """(key, value) of every layer, each (rows, heads, P, head_dim)."""
        shape = self.geometry
        parts = self.values().to(dtype).view(self.length, shape.layers, 2, shape.heads, shape.head_dim)
        parts = parts.permute(1, 2, 3, 0, 4)[:, :, None].expand(-1, -1, rows, -1, -1, -1)
        return [(layer[0], layer[1]) for layer in parts.unbind(0)]

    def hook_on(self, module: nn.Module) -> RemovableHandle:
        """See ModelExtra; it hangs on the model, and takes part in its body."""
        assert isinstance(module, PreTrainedModel)
        body = body_of(module)
        parameters = inspect.signature(body.forward).parameters
        self._argument_names = tuple(parameters)
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        return body.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, body: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give the body the prefix and move the row behind it."""
        self.calls += 1
        if not self.enabled:
            return None
        given: dict[str, Any] = dict(zip(self._argument_names, args, strict=False)) | kwargs
        tokens = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + self.length
        if given.get("boundaries"):  # packed rows: the attention itself puts the prefix before each of them
            return (), given | {"prefix_states": self.states(1, body.dtype)}
        mask = given.get("attention_mask")
        if mask is not None:
            if mask.ndim != 2:
                raise NotImplementedError("a prefix goes with a mask of (rows, tokens)")
            given["attention_mask"] = torch.cat([mask.new_ones(len(mask), self.length), mask], dim=1)
        given[self._cache_name] = self._begun_cache(body, given.get(self._cache_name), len(tokens))
        return (), given | {"use_cache": True}

    def _begun_cache(self, body: PreTrainedModel, cache: Any, rows: int) -> Any:
        """The cache as it is where it holds tokens already, else one that begins with the prefix."""
        cache = DynamicCache(config=body.config) if cache is None else cache
        if cache.get_seq_length() == 0:
            for number, (key, value) in enumerate(self.states(rows, body.dtype)):
                cache.update(key, value, number)
        return cache


def _linear(width: int, out: int, generator: torch.Generator | None) -> tuple[nn.Parameter, nn.Parameter]:
    bound = width ** -0.5
    return (nn.Parameter(torch.empty(out, width).uniform_(-bound, bound, generator=generator)),
            nn.Parameter(torch.empty(out).uniform_(-bound, bound, generator=generator)))


def prefix_of(model: nn.Module) -> TrainedPrefix | None:
    """The prefix on `model`, if there is one."""
    found = getattr(model, _NAME, None)
    return found if isinstance(found, TrainedPrefix) else None


def prefix_length(model: nn.Module) -> int:
    """Positions that the prefix takes at present: 0 where there is none or it is switched off."""
    prefix = prefix_of(model)
    return prefix.length if prefix is not None and prefix.enabled else 0


def fitted_prefix(model: PreTrainedModel, file: PrefixFile) -> TrainedPrefix:
    """A prefix from the disk that is meant for `model`.

    Raises:
        AdapterError: it belongs to a model of another shape.
    """
    geometry = geometry_of(model)
    if geometry != file.geometry:
        raise AdapterError(
            f"The prefix does not fit this model: it is for {file.geometry.layers} layers of {file.geometry.heads} "
            f"key heads of {file.geometry.head_dim}, the model has {geometry.layers} of {geometry.heads} of "
            f"{geometry.head_dim}.",
            "Choose the base model that the adapter was trained on.")
    prefix = TrainedPrefix(geometry, len(file.values))
    with torch.no_grad():
        prefix.embedding.copy_(file.values)
    prefix.requires_grad_(False).eval()
    prefix.meant_for(model)
    return prefix


class Prefix(Method):
    """A trained prefix in every layer; alone it is written into the adapter's folder itself."""

    def __init__(self, config: PrefixConfig, alone: bool = False) -> None:
        self.config = config
        self.folder = "" if alone else PREFIX_FOLDER

    def install(self, model: PreTrainedModel, material: Material) -> None:
        """Put the prefix on `model`. Raises AdapterError where the model can not take one."""
        geometry = geometry_of(model)
        begun = _activations(model, geometry, _first_tokens(material.rows, self.config.length))
        generator = torch.Generator().manual_seed(material.seed)
        projection_size = self.config.projection_size if self.config.projection else 0
        prefix = TrainedPrefix(geometry, self.config.length, projection_size, generator)
        if self.config.start == "activations" and not projection_size:
            with torch.no_grad():
                prefix.embedding.copy_(begun)
        prefix.meant_for(model)
        prefix.hang()
        _require_part(model, prefix)

    def groups(self, model: PreTrainedModel) -> list[ParameterGroup]:
        """All of the prefix, or of the network that computes it."""
        prefix = prefix_of(model)
        assert prefix is not None
        named = {f"{_NAME}.{name}": parameter for name, parameter in prefix.named_parameters()}
        return [ParameterGroup(named, rate=self.config.rate)]

    @torch.no_grad()
    def write(self, folder: Path, model: PreTrainedModel, dtype: torch.dtype, base_name: str,
              origin: dict[str, Any]) -> None:
        """In PEFT layout: the prefix itself. The network has done its work once training is over."""
        prefix = prefix_of(model)
        assert prefix is not None
        shape = prefix.geometry
        config = {
            "peft_type": PREFIX_TYPE, "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name,
            "num_virtual_tokens": prefix.length, "token_dim": shape.width, "num_attention_heads": shape.heads,
            "num_layers": shape.layers, "num_transformer_submodules": 1, "encoder_hidden_size": shape.width,
            "prefix_projection": False, "init_weights": None, "inference_mode": True, "revision": None,
        }
        write_adapter(folder, {PROMPT_KEY: prefix.values().detach().to("cpu", dtype).contiguous()}, config, origin)


def _first_tokens(rows: Sequence[Any], length: int) -> list[int]:
    """`length` tokens from the beginning of the rows, one row after the other, and over again if they are few."""
    tokens: list[int] = []
    while len(tokens) < length:
        before = len(tokens)
        for row in rows:
            tokens += [int(token) for token in row.input_ids[:length - len(tokens)]]
            if len(tokens) >= length:
                return tokens
        if len(tokens) == before:
            raise AdapterError("There are no tokens from which the prefix could start.")
    return tokens


@torch.no_grad()
def _require_part(model: PreTrainedModel, prefix: TrainedPrefix) -> None:
    """Raises AdapterError unless the prefix is asked exactly once in a forward pass of the whole model."""
    before = prefix.calls
    model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    if prefix.calls != before + 1:
        prefix.take_out()
        raise AdapterError("This kind of model can not take a prefix: it does not run its layers in one piece.",
                           "Leave out [prefix].")


@torch.no_grad()
def _activations(model: PreTrainedModel, geometry: Geometry, tokens: list[int]) -> Tensor:
    """What `model` makes of `tokens`: their keys and values as a prefix (tokens, layers * 2 * width).

    Raises:
        AdapterError: the model does not keep keys and values as a prefix needs them.
    """
    body = body_of(model)
    name = "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"
    cache: Any = DynamicCache()  # without the config: a sliding window would forget the first tokens
    try:
        body(input_ids=torch.tensor([tokens], device=model.device), use_cache=True, **{name: cache})
        parts = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]  # (1, heads, P, head_dim)
        values = torch.stack(parts).permute(3, 0, 1, 2, 4).flatten(1)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise AdapterError(f"This kind of model can not take a prefix ({type(error).__name__}).",
                           "Leave out [prefix].") from error
    if values.shape != (len(tokens), 2 * geometry.layers * geometry.width):
        raise AdapterError("This kind of model can not take a prefix: it keeps its keys and values in another form.",
                           "Leave out [prefix].")
    return values.float().cpu()
