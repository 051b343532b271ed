"""Bottleneck adapters: the start is the base exactly, they stand where the paper puts them, and they are found in
every family."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, build_tiny, some_quick
from transformers import BertConfig, FalconConfig, MixtralConfig, OPTConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from core.config import BottleneckConfig, LoraConfig, NoAdapterConfig, RunConfig
from core.errors import AdapterError
from core.extra_shapes import bottleneck_places, bottleneck_shapes, count, extra_parameters
from core.lora.adaptation import Adaptation
from core.lora.adapter_file import read_adapter, write_origin
from core.lora.attach import load_adapter
from core.lora.bottleneck import Bottleneck, BottleneckLayer, bottleneck_layers
from core.lora.inject import adapter_disabled, module_table, remove
from core.lora.method import Material, train_mode
from core.models.load import load_model

IDS = torch.arange(20, 60)[None]
CPU = torch.device("cpu")
MATERIAL = Material((), 0)


def _model(base: Path):
    return load_model(base, CPU, torch.float32)


def _moved(model) -> None:
    torch.manual_seed(0)
    for layer in bottleneck_layers(model).values():
        torch.nn.init.normal_(layer.up, std=0.05)
        torch.nn.init.normal_(layer.up_bias, std=0.05)


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_the_start_is_the_base_bit_for_bit_and_nothing_is_left_when_taken_off(family: str, tmp_path: Path) -> None:
    model = _model(build_tiny(family, tmp_path / "base"))
    expected, table, names = model(IDS).logits, module_table(model), [name for name, _ in model.named_parameters()]
    config = BottleneckConfig(size=8)
    Bottleneck(config).install(model, MATERIAL)
    assert torch.equal(model(IDS).logits, expected)
    assert module_table(model) == table
    layers = model.config.num_hidden_layers
    assert len(bottleneck_layers(model)) == 2 * layers
    _moved(model)
    changed = model(IDS).logits
    assert not torch.allclose(changed, expected)
    with adapter_disabled(model):
        assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(model(IDS).logits, changed)
    remove(model)
    assert torch.equal(model(IDS).logits, expected)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_only_its_own_parameters_are_trained_and_each_gets_a_gradient(family: str, tmp_path: Path) -> None:
    model = _model(build_tiny(family, tmp_path / "base"))
    config = RunConfig(adapter=NoAdapterConfig(), bottleneck=BottleneckConfig(size=8))
    adaptation = Adaptation(config)
    adaptation.install(model, MATERIAL)
    _moved(model)
    train_mode(model)
    trained = adaptation.parameters(model)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(trained)
    assert sum(parameter.numel() for parameter in trained.values()) == extra_parameters(config, module_table(model))
    F.cross_entropy(model(IDS).logits[0, :-1], IDS[0, 1:]).backward()
    for name, parameter in model.named_parameters():
        if name in trained:
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
def test_the_gradient_is_right(activation: str) -> None:
    torch.manual_seed(0)
    layer = BottleneckLayer(6, 3, activation).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (hidden, *layer.parameters()))


def test_it_follows_attention_and_mlp_before_the_residual(tiny_model: Path) -> None:
    model = _model(tiny_model)
    Bottleneck(BottleneckConfig(size=8, placement="mlp", first_layer=1, last_layer=1)).install(model, MATERIAL)
    assert list(bottleneck_layers(model)) == ["model.layers.1.mlp"]
    _moved(model)
    layer = model.model.layers[1].mlp
    hidden = torch.randn(2, 5, 64)
    ours = layer(hidden)
    with adapter_disabled(model):
        plain = layer(hidden)
    own = layer.bottleneck
    narrow = F.gelu(F.linear(plain, own.down, own.down_bias))
    torch.testing.assert_close(ours, plain + F.linear(narrow, own.up, own.up_bias))


@pytest.mark.parametrize("config", [
    FalconConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    OPTConfig(vocab_size=99, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
              word_embed_proj_dim=32, max_position_embeddings=64),
    MixtralConfig(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, num_local_experts=4),
    BertConfig(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
               is_decoder=True),
], ids=["falcon", "opt", "mixtral", "bert"])
def test_other_families_are_found_too(config: object) -> None:
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    expected = model(IDS).logits
    Bottleneck(BottleneckConfig(size=4)).install(model, MATERIAL)
    assert torch.equal(model(IDS).logits, expected)
    assert [layer.down.shape for layer in bottleneck_layers(model).values()] == [(4, 32)] * 4
    _moved(model)
    assert not torch.allclose(model(IDS).logits, expected)


def test_files_both_ways_and_shapes_from_the_module_table(tiny_model: Path, tmp_path: Path) -> None:
    model, config = _model(tiny_model), BottleneckConfig(size=8, activation="relu", first_layer=1)
    adaptation = Adaptation(RunConfig(adapter=NoAdapterConfig(), bottleneck=config))
    adaptation.install(model, MATERIAL)
    _moved(model)
    folder = tmp_path / "adapter"
    folder.mkdir()
    adaptation.write(folder, model, torch.float32, str(tiny_model), {"base_name": "tiny"})
    tensors = load_file(folder / "bottleneck" / "bottleneck.safetensors")
    shapes = bottleneck_shapes(bottleneck_places(module_table(model), config), config)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert count(shapes) == sum(parameter.numel() for parameter in adaptation.parameters(model).values())
    again = _model(tiny_model)
    file = load_adapter(folder, again)
    assert file.origin == {"base_name": "tiny"}
    assert not file.pairs
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_wrong_or_damaged_file_is_refused_and_nothing_is_put_on(tiny_model: Path, tmp_path: Path) -> None:
    model = _model(tiny_model)
    method = Bottleneck(BottleneckConfig(size=8))
    method.install(model, MATERIAL)
    place = tmp_path / "adapter" / "bottleneck"
    place.mkdir(parents=True)
    method.write(place, model, torch.float32, str(tiny_model), {})
    write_origin(place.parent, {})
    other = _model(build_tiny("gpt2", tmp_path / "gpt2"))
    with pytest.raises(AdapterError, match=r"model\.layers\.0\.mlp should be 64 wide but does not exist"):
        load_adapter(place.parent, other)
    assert not bottleneck_layers(other)
    weights, config = place / "bottleneck.safetensors", place / "bottleneck_config.json"
    tensors, words = load_file(weights), json.loads(config.read_text())
    first = "model.layers.0.mlp.up.weight"
    for changed, message in (
            ({name: tensor for name, tensor in tensors.items() if name != first}, "only a part of model.layers.0.mlp"),
            (tensors | {first: tensors[first][:, :5].contiguous()}, "should be"),
            (tensors | {first: tensors[first] * torch.nan}, "not finite"),
            (tensors | {"strange": tensors[first].clone()}, "strange"), ({}, "empty")):
        save_file(changed, weights)
        with pytest.raises(AdapterError, match=message):
            read_adapter(place.parent)
    save_file(tensors, weights)
    config.write_text(json.dumps(words | {"activation": "tanh"}))
    with pytest.raises(AdapterError, match="form that is not known"):
        read_adapter(place.parent)


def test_together_with_lora_on_the_same_modules(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[OPTConfig](OPTConfig(
        vocab_size=99, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64)).eval()
    expected = model(IDS).logits
    adaptation = Adaptation(RunConfig(adapter=LoraConfig(rank=2), bottleneck=BottleneckConfig(size=4)))
    adaptation.install(model, MATERIAL)  # OPT has no module for its MLP: it follows the linear layer, inside of LoRA's
    _moved(model)
    assert not torch.allclose(model(IDS).logits, expected)
    folder = tmp_path / "adapter"
    folder.mkdir()
    adaptation.write(folder, model, torch.float32, "opt", {})
    changed = model(IDS).logits
    remove(model)
    assert torch.equal(model(IDS).logits, expected)
    load_adapter(folder, model)
    assert torch.equal(model(IDS).logits, changed)
