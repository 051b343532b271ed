"""What a model is, from its config and the headers of its weights; the weights stay on the disk."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from core.control import Control
from core.errors import ModelError
from core.events import Event, ModelInspected, Result
from core.jobs import InspectModel
from core.lora.inject import module_table
from core.models.card_file import read_card_file
from core.models.json_file import read_object
from core.models.kept_card import kept_card
from core.models.library import display_name, resolve
from core.models.load import load_config, one_line
from core.models.safetensors_header import SafetensorsHeader
from core.models.safety import check_config, check_model_folder
from core.records import ModelCard

_MAX_LAYERS = 1_000
_SMALL_BYTES = 64 * 1024**2  # below it the fingerprint covers every byte
_SAMPLE_BYTES = 4096
_MAX_SAMPLES = 4096
_DTYPE_NAMES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16", "F64": "fp64"}


def inspect_model(job: InspectModel, control: Control) -> Iterator[Event]:
    """Describe a model -> ModelInspected, Result(path, name).

    Raises:
        ModelError: there is no such model, or it is unsafe or damaged.
    """
    path = resolve(job.model)
    control.check()
    card = read_card(path)
    yield ModelInspected(card)
    yield Result({"path": path, "name": card.name})


def read_card(path: Path) -> ModelCard:
    """The card of a model folder, with its module table, in about a second for a model of 7 billion.

    Raises:
        ModelError: unsafe, damaged, or not a language model.
    """
    headers = check_model_folder(path)
    return kept_card(path, lambda: _described(path, headers))


def read_shape_card(path: Path) -> ModelCard:
    """The card of a folder that need hold no more than a config.json: enough to count parameters and memory.

    Raises:
        ModelError: no config.json, or not of a language model.
    """
    check_config(path)
    return _described(path, [])


def _described(path: Path, headers: list[SafetensorsHeader]) -> ModelCard:
    config = load_config(path)
    text = config.get_text_config()
    model = _meta_model(path, config, headers)
    embedding = model.get_input_embeddings()
    vocabulary = int(embedding.num_embeddings)
    heads = int(text.num_attention_heads)
    return ModelCard(
        path=path,
        name=display_name(path),
        model_type=config.model_type,
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),  # a tied weight comes once
        layers=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        intermediate_size=_intermediate_size(text),
        attention_heads=heads,
        key_value_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        vocabulary=vocabulary,
        context_length=int(getattr(text, "max_position_embeddings", 0) or 0),
        dtype=_dtype(headers),
        bytes_on_disk=sum(header.path.stat().st_size for header in headers),
        has_chat_template=_has_chat_template(path),
        tied_embeddings=_is_tied(model),
        origin=_origin(path),
        fingerprint=fingerprint(path, headers),
        modules=tuple(module_table(model)),
        warnings=tuple(_warnings(path, vocabulary)),
    )


def fingerprint(path: Path, headers: list[SafetensorsHeader]) -> str:
    """SHA-256 over config.json and, for each weight file, its name, size, header and content.

    All content up to 64 MiB in total; beyond that 4 KiB from the middle of each tensor (of at most
    4,096 evenly chosen ones in a file), so that it stays cheap for a model of any size.
    """
    digest = hashlib.sha256((path / "config.json").read_bytes())
    small = sum(header.path.stat().st_size for header in headers) <= _SMALL_BYTES
    for header in headers:
        size = header.path.stat().st_size
        digest.update(f"{header.path.name}\0{size}\0".encode())
        digest.update(header.raw)
        with open(header.path, "rb") as file:
            if small:
                digest.update(file.read())
                continue
            for position in _sample_positions(header):
                file.seek(position)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _sample_positions(header: SafetensorsHeader) -> list[int]:
    entries = list(header.tensors.values())
    step = max(1, -(-len(entries) // _MAX_SAMPLES))
    middles = [(entry.begin + entry.end - _SAMPLE_BYTES) // 2 for entry in entries[::step]]
    return [header.data_start + max(0, middle) for middle in middles]


def _meta_model(path: Path, config: PretrainedConfig, headers: list[SafetensorsHeader]) -> Any:
    """The model's modules with shapes but without memory."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    tensors = sum(len(header.tensors) for header in headers) if headers else _MAX_LAYERS
    if not isinstance(layers, int) or not 0 < layers <= min(_MAX_LAYERS, tensors):
        raise ModelError(f"The config.json in {path} claims {layers} layers, but the weights hold {tensors} tensors.",
                         "Fetch the model again.")
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    try:
        with torch.device("meta"):
            return model_class(config)
    except Exception as error:
        # a model's own constructor can fail in any way on numbers that do not fit together
        raise ModelError(f"The config.json in {path} does not describe a model that can be built: {one_line(error)}.",
                         "Fetch the model again.") from error


def _intermediate_size(config: PretrainedConfig) -> int:
    for name in ("intermediate_size", "n_inner", "ffn_dim"):
        value = getattr(config, name, None)
        if isinstance(value, list):
            return max(value)
        if value:
            return int(value)
    return 4 * int(config.hidden_size)  # GPT-2 leaves it out


def _is_tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _dtype(headers: list[SafetensorsHeader]) -> str:
    """The number type that holds the most bytes of the weights."""
    sizes: dict[str, int] = {}
    for header in headers:
        for entry in header.tensors.values():
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.begin
    most = max(sizes, key=lambda name: sizes[name], default="")
    return _DTYPE_NAMES.get(most, most.lower())


def _has_chat_template(path: Path) -> bool:
    if any((path / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    if not (path / "tokenizer_config.json").is_file():
        return False
    return bool(read_object(path / "tokenizer_config.json", 32 * 1024**2).get("chat_template"))


def _origin(path: Path) -> str:
    card = read_card_file(path)
    if card is not None:
        return card.origin
    name = display_name(path)
    if path.absolute().parent.name == "snapshots":
        return f"From the hub cache of this machine: {name}, revision {path.absolute().name[:12]}."
    return f"The folder {path} on this machine."


def _warnings(path: Path, vocabulary: int) -> Iterator[str]:
    if not (path / "tokenizer.json").is_file():
        return
    try:
        known = Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    except Exception as error:
        # the library has no narrower type for a damaged file
        raise ModelError(f"{path / 'tokenizer.json'} is damaged: {one_line(error)}.",
                         "Fetch the model again.") from error
    if known > vocabulary:
        yield (f"The tokenizer knows {known:,} tokens, the model has room for {vocabulary:,}; "
               "rows that need the others can not be used.")
