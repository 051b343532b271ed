"""LoRA's own options against peft: biases, whole modules, embeddings and heads, tied or not, patterns, tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import build_tiny, some_quick
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from core.config import DoraConfig, LoraConfig, ModelConfig, QLoraConfig, RunConfig
from core.errors import AdapterError
from core.estimate import estimate
from core.lora.adaptation import Adaptation
from core.lora.adapter_file import save_adapter
from core.lora.attach import load_adapter
from core.lora.inject import adapter_disabled, inject, lora_layers, remove
from core.lora.method import Material
from core.models.inspect import read_card
from core.models.load import load_model
from core.run_problems import problems

IDS = torch.arange(20, 60)[None]
# name: (family, our fields, peft's fields)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "biases of all": ("gpt2", {"target_modules": ("c_attn",), "bias": "all"},
                      {"target_modules": ["c_attn"], "bias": "all"}),
    "biases of the targets": ("qwen2", {"target_modules": ("q_proj", "v_proj"), "bias": "lora_only"},
                              {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}),
    "biases of a fused layer": ("gpt_neox", {"target_modules": ("query_key_value",), "bias": "lora_only"},
                                {"target_modules": ["query_key_value"], "bias": "lora_only"}),
    "untied head and norms whole": (
        "qwen3", {"target_modules": ("q_proj",), "modules_to_save": ("lm_head", "input_layernorm")},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]}),
    "the last norm alone": ("llama", {"target_modules": ("q_proj",), "modules_to_save": ("model.norm",)},
                            {"target_modules": ["q_proj"], "modules_to_save": ["model.norm"]}),
    "a whole mlp": ("mistral", {"target_modules": ("q_proj",), "modules_to_save": ("layers.1.mlp",)},
                    {"target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp"]}),
    "tied head whole, parted": ("llama", {"target_modules": ("q_proj",), "modules_to_save": ("lm_head",)},
                                {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied embedding whole, kept tied": (
        "llama", {"target_modules": ("q_proj",), "modules_to_save": ("embed_tokens",), "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "tied embedding": ("llama", {"target_modules": ("q_proj", "embed_tokens")},
                       {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied head": ("qwen2", {"target_modules": ("q_proj", "lm_head")}, {"target_modules": ["q_proj", "lm_head"]}),
    "both of a tied pair, parted": ("llama", {"target_modules": ("embed_tokens", "lm_head")},
                                    {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied pair kept tied": ("llama", {"target_modules": ("q_proj", "embed_tokens"), "ensure_weight_tying": True},
                            {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    "untied embedding and head": ("qwen3", {"target_modules": ("q_proj", "embed_tokens", "lm_head")},
                                  {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "scaled embedding": ("gemma3", {"target_modules": ("q_proj", "embed_tokens")},
                         {"target_modules": ["q_proj", "embed_tokens"]}),
    "gpt2 embeddings": ("gpt2", {"target_modules": ("wte", "wpe", "c_attn")},
                        {"target_modules": ["wte", "wpe", "c_attn"]}),
    "patterns": ("llama", {"target_modules": "all-linear", "rank_pattern": {r".*\.[01]\.mlp\..*": 2, "q_proj": 3},
                           "alpha_pattern": {"layers.2.self_attn.(q|k)_proj": 5.0}, "rslora": True},
                 {"target_modules": "all-linear", "rank_pattern": {r".*\.[01]\.mlp\..*": 2, "q_proj": 3},
                  "alpha_pattern": {"layers.2.self_attn.(q|k)_proj": 5.0}, "use_rslora": True}),
    "a preset and an embedding": ("llama", {"target_modules": ("q-v", "embed_tokens")},
                                  {"target_modules": ["q_proj", "v_proj", "embed_tokens"]}),
    "a regular expression": ("llama", {"target_modules": r".*\.1\..*(up|down)_proj"},
                             {"target_modules": r".*\.1\..*(up|down)_proj"}),
}

QUICK = ("biases of a fused layer", "untied head and norms whole", "tied embedding whole, kept tied",
         "both of a tied pair, parted", "gpt2 embeddings", "patterns", "a preset and an embedding")


def install(base: Path, fields: dict[str, Any], seed: int = 0) -> tuple[PreTrainedModel, LoraConfig, Adaptation]:
    """Our adapter on the base of a folder."""
    adapter = LoraConfig(rank=4, alpha=6.0, **fields)
    model = load_model(base, torch.device("cpu"), torch.float32)
    adaptation = Adaptation(RunConfig(adapter=adapter))
    adaptation.install(model, Material([], seed))
    return model, adapter, adaptation


def shake(parameters: dict[str, nn.Parameter] | dict[str, Tensor]) -> None:
    """Move every trained number, as if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def reference_of(base: Path) -> PreTrainedModel:
    """The base as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def peft_model(base: Path, fields: dict[str, Any]) -> Any:
    """Peft's adapter on the base of a folder, its numbers moved."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    config = PeftConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **fields)
    model = get_peft_model(reference_of(base), config).eval()
    shake({name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad})
    return model


def logits_of(model: Any) -> Tensor:
    """Of fixed tokens, without a gradient."""
    with torch.no_grad():
        return model(IDS).logits


def gradients(model: Any) -> float:
    """The norm of the gradient of a loss by everything that is trained, as one number."""
    loss = torch.nn.functional.cross_entropy(model(IDS).logits[0, :-1], IDS[0, 1:])
    loss.backward()
    seen = {id(parameter): parameter for parameter in model.parameters() if parameter.grad is not None}
    return float(torch.stack([parameter.grad.double().square().sum() for parameter in seen.values()]).sum().sqrt())


@pytest.mark.parametrize("case", some_quick(CASES, QUICK))
def test_ours_to_peft(case: str, tmp_path: Path) -> None:
    from peft import PeftModel

    family, fields, _ = CASES[case]
    base = build_tiny(family, tmp_path / "base")
    model, adapter, adaptation = install(base, fields)
    torch.testing.assert_close(logits_of(model), logits_of(reference_of(base)), rtol=0, atol=1e-5)
    shake(adaptation.parameters(model))
    save_adapter(tmp_path / "adapter", model, adapter, str(base))
    reference = PeftModel.from_pretrained(reference_of(base), tmp_path / "adapter", is_trainable=True).eval()
    torch.testing.assert_close(logits_of(model), logits_of(reference), rtol=0, atol=1e-5)
    if not fields.get("ensure_weight_tying"):  # where peft holds two parameters on the same numbers
        torch.testing.assert_close(gradients(model), gradients(reference), rtol=1e-5, atol=0)
    counted = estimate(RunConfig(adapter=adapter), read_card(base))
    assert counted.trainable_parameters == sum(item.numel() for item in adaptation.parameters(model).values())
    assert counted.adapter_bytes == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    fresh = load_model(base, torch.device("cpu"), torch.float32)
    load_adapter(tmp_path / "adapter", fresh)
    torch.testing.assert_close(logits_of(fresh), logits_of(model), rtol=0, atol=5e-6)


@pytest.mark.parametrize("case", some_quick(CASES, QUICK))
def test_peft_to_ours(case: str, tmp_path: Path) -> None:
    family, _, fields = CASES[case]
    base = build_tiny(family, tmp_path / "base")
    reference = peft_model(base, fields)
    reference.save_pretrained(tmp_path / "adapter")
    model = load_model(base, torch.device("cpu"), torch.float32)
    before = logits_of(model)
    load_adapter(tmp_path / "adapter", model)
    torch.testing.assert_close(logits_of(model), logits_of(reference), rtol=0, atol=1e-5)
    with adapter_disabled(model):
        assert torch.equal(logits_of(model), before)
    remove(model)
    assert torch.equal(logits_of(model), before)
    assert not lora_layers(model)
    assert not any("parametrizations" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("case", ["biases of all", "untied head and norms whole", "untied embedding and head",
                                  "patterns", "tied head whole, parted"])
def test_ten_steps_give_the_weights_of_peft(case: str, tmp_path: Path) -> None:
    from peft import PeftModel

    family, fields, _ = CASES[case]
    base = build_tiny(family, tmp_path / "base")
    model, adapter, adaptation = install(base, fields)
    save_adapter(tmp_path / "start", model, adapter, str(base))
    reference = PeftModel.from_pretrained(reference_of(base), tmp_path / "start", is_trainable=True).eval()
    for trained, parameters in ((model, list(adaptation.parameters(model).values())),
                                (reference, [item for item in reference.parameters() if item.requires_grad])):
        optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        for step in range(10):
            ids = (IDS + step) % 384
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(trained(ids).logits[0, :-1], ids[0, 1:]).backward()
            optimizer.step()
    torch.testing.assert_close(logits_of(model), logits_of(reference), rtol=0, atol=1e-4)
    reference.save_pretrained(tmp_path / "theirs")
    save_adapter(tmp_path / "ours", model, adapter, str(base))
    theirs, ours = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    assert {name for name in theirs if "base_layer.weight" not in name} == set(ours)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5)


class Pictures(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.flat = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.long = nn.Conv1d(8, 6, 3, padding=2)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 4)."""
        return self.out(self.long(self.flat(x).flatten(2)).mean(dim=2))


def test_convolutions_as_in_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    model, images = Pictures(), torch.randn(2, 3, 8, 8)
    adapter = LoraConfig(rank=2, alpha=3.0, target_modules=("flat", "long", "out"))
    layers = inject(model, adapter, seed=0)
    torch.testing.assert_close(model(images), Pictures()(images))
    shake({f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("lora_a", "lora_b")})
    save_adapter(tmp_path / "a", model, adapter, "")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"task_type": None}))
    reference = PeftModel.from_pretrained(Pictures(), tmp_path / "a")
    torch.testing.assert_close(model(images), reference(images), rtol=0, atol=1e-5)
    fresh = Pictures()
    for name, pair in load_adapter(tmp_path / "a", fresh).pairs.items():
        torch.testing.assert_close(pair.delta(), layers[name].delta().flatten(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(fresh(images), model(images))
    merged = reference.merge_and_unload().state_dict()
    for name, layer in layers.items():
        torch.testing.assert_close(layer.weight + layer.delta(), merged[f"{name}.weight"], rtol=0, atol=1e-6)


def test_a_convolution_in_groups_or_with_another_padding_is_refused_whole(tmp_path: Path) -> None:
    model = Pictures()
    inject(model, LoraConfig(rank=2, target_modules=("long", "out")), seed=0)
    save_adapter(tmp_path / "a", model, LoraConfig(rank=2, target_modules=("long", "out")), "")
    for fields in ({"padding_mode": "circular"}, {"groups": 2}):
        other = Pictures()
        other.long = nn.Conv1d(8 * fields.get("groups", 1), 6, 3, padding=2, **fields)
        with pytest.raises(AdapterError, match="'long' is not a linear layer"):
            inject(other, LoraConfig(rank=2, target_modules=("out", "long")), seed=0)
        with pytest.raises(AdapterError, match="long is there of a kind that can not be adapted"):
            load_adapter(tmp_path / "a", other)
        assert not lora_layers(other)


@pytest.mark.parametrize(("fields", "field", "words"), [
    ({"rank_pattern": {"nothing_proj": 2}}, "rank_pattern", "matches none"),
    ({"alpha_pattern": {r"(?:(.)|(?P<b>.)(?P=b)?)*[A-Z]": 2.0}}, "alpha_pattern", "takes too long"),
    ({"target_modules": r"(?:(.)|(.)\2?)*[A-Z]"}, "target_modules", "takes too long"),
    ({"rank_pattern": {"embed_tokens": 2}}, "rank_pattern", "matches none"),
    ({"modules_to_save": ("nothing",)}, "modules_to_save", "is not in this model"),
    ({"modules_to_save": ("q_proj",)}, "modules_to_save", "both adapted and trained whole"),
    ({"bias": "all"}, "bias", "no biases"),
    ({"target_modules": ("model.norm",)}, "target_modules", "'model.norm' is not a linear layer"),
    ({"target_modules": ("q_proj", "mlp")}, "target_modules", "'mlp' is not a linear layer"),
    ({"target_modules": r"model\.norm"}, "target_modules", "model.norm is not a linear layer"),
    ({"target_modules": ("nothing_proj",)}, "target_modules", "matches no module"),
])
def test_what_can_not_be_meant_is_told_at_its_field(
        fields: dict[str, Any], field: str, words: str, tiny_model: Path) -> None:
    adapter = LoraConfig(**({"target_modules": ("q_proj",)} | fields))
    config = RunConfig(model=ModelConfig(path=str(tiny_model)), adapter=adapter)
    found = [item for item in problems(config, read_card(tiny_model)) if item.field.startswith("adapter.")]
    assert [item.field for item in found] == [f"adapter.{field}"]
    assert words in found[0].message
    if field != "bias":
        with pytest.raises(AdapterError, match=words):
            install(tiny_model, {"target_modules": ("q_proj",)} | fields)


@pytest.mark.parametrize("method", [DoraConfig, QLoraConfig])
def test_keeping_a_head_tied_that_only_lora_can_is_told_at_its_field(
        method: type[DoraConfig] | type[QLoraConfig], tiny_model: Path) -> None:
    for fields, expected in (({"ensure_weight_tying": True}, ["adapter.ensure_weight_tying"]), ({}, [])):
        adapter = method(target_modules=("q_proj", "lm_head"), **fields)
        config = RunConfig(model=ModelConfig(path=str(tiny_model)), adapter=adapter)
        found = [item for item in problems(config, read_card(tiny_model)) if item.field.startswith("adapter.")]
        assert [item.field for item in found] == expected
    plain = config.model_copy(update={"adapter": LoraConfig(target_modules=("lm_head",), ensure_weight_tying=True)})
    assert not [item for item in problems(plain, read_card(tiny_model)) if item.field.startswith("adapter.")]


def test_dora_on_an_embedding_is_refused(tiny_model: Path) -> None:
    config = RunConfig(model=ModelConfig(path=str(tiny_model)), adapter=DoraConfig(target_modules=("embed_tokens",)))
    (found,) = [item for item in problems(config, read_card(tiny_model)) if item.field.startswith("adapter.")]
    assert found.field == "adapter.target_modules"
    assert "not a linear layer" in found.message
