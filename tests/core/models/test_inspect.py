"""The card that is read from headers and config agrees with the model that is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, build_tiny
from transformers.pytorch_utils import Conv1D

from core.control import Control
from core.errors import ModelError
from core.events import ModelInspected, Result
from core.jobs import InspectModel
from core.models.inspect import inspect_model, read_card
from core.models.load import load_model, load_tokenizer

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_card_agrees_with_the_loaded_model(family: str, tmp_path: Path) -> None:
    folder = build_tiny(family, tmp_path / family)
    card = read_card(folder)
    model = load_model(folder, CPU, torch.float32)
    modules = dict(model.named_modules())
    assert card.parameters == model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert card.architecture == type(model).__name__
    assert (card.layers, card.hidden_size, card.intermediate_size) == (3 if family == "llama" else 2, 64, 128)
    assert (card.attention_heads, card.vocabulary, card.context_length) == (4, 384, 512)
    assert card.key_value_heads == (4 if family in ("gpt2", "gpt_neox") else 2)
    assert card.tied_embeddings == model.config.tie_word_embeddings
    assert card.dtype == "fp32" and card.has_chat_template and card.warnings == ()
    for info in card.modules:
        module = modules[info.name]
        if info.type == "Linear":
            assert (info.in_features, info.out_features) == (module.in_features, module.out_features)
        if info.type == "Conv1D":
            assert isinstance(module, Conv1D)
            assert (info.in_features, info.out_features) == tuple(module.weight.shape)
        assert info.is_output_head == (module is model.get_output_embeddings())
        assert info.layer == -1 or f".{info.layer}." in info.name
    assert {info.layer for info in card.modules} == {-1, *range(card.layers)}
    assert sum(info.type == "Conv1D" for info in card.modules) == (8 if family == "gpt2" else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_model_is_frozen_and_computes_as_saved(family: str, tmp_path: Path) -> None:
    folder = build_tiny(family, tmp_path / family, shard_size="100KB")
    assert (folder / "model.safetensors.index.json").exists()
    model = load_model(folder, CPU, torch.float32)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == ("eager" if family == "gemma2" else "sdpa")
    whole = load_model(build_tiny(family, tmp_path / "again"), CPU, torch.float32)
    ids = torch.tensor([load_tokenizer(folder)("No, make that three.")["input_ids"]])
    assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)


def test_job_ends_with_one_result(tiny_model: Path) -> None:
    events = list(inspect_model(InspectModel(str(tiny_model)), Control()))
    assert [type(event) for event in events] == [ModelInspected, Result]
    assert events[0].card.name == "tiny-llama"
    assert events[1].values["path"] == tiny_model


def test_fingerprint_changes_with_one_byte(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    assert read_card(folder).fingerprint == read_card(tiny_model).fingerprint
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    assert read_card(folder).fingerprint != read_card(tiny_model).fingerprint


def test_tokenizer_larger_than_the_embedding_is_a_warning(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 384, "content": "<|extra|>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert "385 tokens" in read_card(folder).warnings[0]


@pytest.mark.parametrize("changes", [
    {"num_hidden_layers": 10**9}, {"num_hidden_layers": 0}, {"num_hidden_layers": "many"}, {"hidden_size": "x"},
    {"num_attention_heads": 0}, {"hidden_act": "no-such"}, {"rope_parameters": {"rope_type": "no-such"}},
    {"vocab_size": -5}, {"hidden_size": 2**62},
])
def test_impossible_config_is_one_sentence(tiny_model: Path, tmp_path: Path, changes: dict) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(ModelError) as caught:
        read_card(folder)
    assert "\n" not in caught.value.message


def test_not_a_language_model(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match="not a text-generating"):
        read_card(folder)


def test_missing_weights_are_never_made_up(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, the first is model.layers.1.mlp.up_proj.weight"):
        load_model(folder, CPU, torch.float32)


def test_weights_of_another_shape(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="do not fit"):
        load_model(folder, CPU, torch.float32)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"not json", b'{"model": {"type": "BPE"}}'])
def test_damaged_tokenizer(tiny_model: Path, tmp_path: Path, content: bytes) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(folder)
    with pytest.raises(ModelError, match="tokenizer"):
        read_card(folder)
