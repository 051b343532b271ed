"""Adapters on disk: read by PEFT, read from PEFT, and refused when they are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, build_tiny, some_quick
from transformers import AutoModelForCausalLM

from core.config import LoraConfig
from core.errors import AdapterError
from core.lora import attach
from core.lora.adapter_file import copy_adapter, read_adapter, save_adapter
from core.lora.attach import load_adapter
from core.lora.inject import inject, lora_layers, wrap
from core.models.load import load_model

IDS = torch.arange(20, 60)[None]


def _load(folder: Path):
    return load_model(folder, torch.device("cpu"), torch.float32)


def _ours(base: Path, adapter: LoraConfig, out: Path):
    model = _load(base)
    torch.manual_seed(0)
    for layer in inject(model, adapter, seed=0).values():
        torch.nn.init.normal_(layer.lora_b, std=0.05)
    save_adapter(out, model, adapter, str(base))
    return model


@pytest.mark.parametrize("family", some_quick(FAMILIES))
@pytest.mark.parametrize("adapter", [
    LoraConfig(rank=4, alpha=6.0),
    LoraConfig(rank=2, target_modules="q-v"),
    LoraConfig(rank=2, target_modules="attention", first_layer=1),
], ids=["all-linear", "q-v", "upper attention"])
def test_peft_reads_ours(family: str, adapter: LoraConfig, tmp_path: Path) -> None:
    from peft import PeftModel

    base = build_tiny(family, tmp_path / "base")
    model = _ours(base, adapter, tmp_path / "adapter")
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
                                          tmp_path / "adapter").eval()
    adapted = {name.removeprefix("base_model.model.") for name, module in reference.named_modules()
               if hasattr(module, "lora_A")}
    assert adapted == set(lora_layers(model))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", some_quick(FAMILIES))
@pytest.mark.parametrize("rslora", [False, True])
def test_ours_reads_peft(family: str, rslora: bool, tmp_path: Path) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    base = build_tiny(family, tmp_path / "base")
    config = PeftConfig(r=4, lora_alpha=12, target_modules="all-linear", use_rslora=rslora, task_type="CAUSAL_LM",
                        init_lora_weights=False)
    reference = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).eval()
    reference.save_pretrained(tmp_path / "adapter")
    model = _load(base)
    load_adapter(tmp_path / "adapter", model)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, rtol=0, atol=1e-4)


def test_rank_and_alpha_patterns_of_peft_are_honoured(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    config = PeftConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
                        rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"v_proj": 3})
    reference = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), config).eval()
    reference.save_pretrained(tmp_path / "adapter")
    model = _load(tiny_model)
    load_adapter(tmp_path / "adapter", model)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, rtol=0, atol=1e-4)


def test_copy_in_sixteen_bit_is_half_the_size_and_close(tiny_model: Path, tmp_path: Path) -> None:
    _ours(tiny_model, LoraConfig(rank=8), tmp_path / "a")
    copy_adapter(tmp_path / "a", tmp_path / "b", "bf16")
    sizes = [(tmp_path / name / "adapter_model.safetensors").stat().st_size for name in "ab"]
    assert sizes[1] < 0.62 * sizes[0]
    for name, pair in read_adapter(tmp_path / "b").pairs.items():
        torch.testing.assert_close(pair.delta(), read_adapter(tmp_path / "a").pairs[name].delta(), rtol=0.1, atol=1e-2)


def _rewrite(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("changes", "words"), [
    ({"bias": "some"}, "bias"), ({"peft_type": "LOHA"}, "peft_type"), ({"lora_bias": True}, "lora_bias"),
    ({"modules_to_save": "lm_head"}, "modules_to_save"), ({"r": 3}, "says rank 3"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"), ({"kasa_config": {"beta": 1}}, "kasa_config"),
    ({"rank_pattern": {"(a": 2}}, "not a valid regular expression"),
    ({"r": None}, "r = None"), ({"lora_alpha": "sixteen"}, "lora_alpha = 'sixteen'"),
    ({"lora_alpha": None}, "lora_alpha = None"),
    ({"rank_pattern": [2]}, "rank_pattern = "), ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern with None"),
    ({"lora_dropout": "much"}, "lora_dropout"), ({"target_modules": 3}, "target_modules = 3"),
    ({"rank_pattern": {r"(?:(.)|(?P<b>.)(?P=b)?)*[A-Z]": 2}}, "takes too long"),
])
def test_a_field_that_changes_the_meaning_is_refused_by_name(
        tiny_model: Path, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    _ours(tiny_model, LoraConfig(rank=2), tmp_path / "a")
    _rewrite(tmp_path / "a", **changes)
    with pytest.raises(AdapterError, match=words):
        read_adapter(tmp_path / "a")


def test_damage_is_named_and_nothing_is_half_loaded(tiny_model: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    _ours(tiny_model, LoraConfig(rank=2), tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    good = load_file(weights)
    foreign = "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    cases = {
        "not finite": good | {key: torch.full_like(good[key], torch.nan)},
        "only half of model.layers.1.mlp.up_proj": {name: tensor for name, tensor in good.items() if name != key},
        "does not fit this model": good | {key: torch.zeros(2, 5)},
        "not a LoRA matrix": good | {"strange": torch.zeros(1)},
        "does not exist": good | {foreign: good[key].clone(),
                                  foreign.replace("_A", "_B"): good[key.replace("_A", "_B")].clone()},
    }
    for words, tensors in cases.items():
        save_file(tensors, weights)
        model = _load(tiny_model)
        with pytest.raises(AdapterError, match=words):
            load_adapter(tmp_path / "a", model)
        assert not lora_layers(model)
    save_file(good, weights)
    model, names = _load(tiny_model), [name for name, _ in _load(tiny_model).named_modules()]
    calls: list[Any] = []

    def wrap_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > 2:
            raise AdapterError("no more")
        return wrap(*args, **kwargs)

    monkeypatch.setattr(attach, "wrap", wrap_once)
    with pytest.raises(AdapterError, match="no more"):
        load_adapter(tmp_path / "a", model)
    assert [name for name, _ in model.named_modules()] == names
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(AdapterError, match="damaged"):
        read_adapter(tmp_path / "a")
    weights.unlink()
    with pytest.raises(AdapterError, match="has no adapter_model"):
        read_adapter(tmp_path / "a")
