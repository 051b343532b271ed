"""Adapters of experts: several at once with strengths, mixed into one, and in the compatible form."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import build_tiny
from transformers import AutoModelForCausalLM, PreTrainedModel

from core.config import LoraConfig
from core.control import Control
from core.errors import AdapterError
from core.export.mix import mix_adapters
from core.jobs import AdapterUse, MixAdapters
from core.lora.adapter_file import read_adapter, save_adapter, write_adapter
from core.lora.adapter_set import AdapterSet
from core.lora.attach import load_adapter
from core.lora.experts import expert_matrices
from core.lora.inject import inject, lora_layers
from core.lora.plain_form import compatible_form
from core.models.load import load_model

IDS = torch.arange(20, 60)[None]


def _load(folder: Path) -> PreTrainedModel:
    return load_model(folder, torch.device("cpu"), torch.float32)


@torch.no_grad()
def _logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def _make(base: Path, folder: Path, seed: int, adapter: LoraConfig) -> Path:
    model = _load(base)
    inject(model, adapter, seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in [*lora_layers(model).values(), *expert_matrices(model).values()]:
        layer.lora_b.data.normal_(0, 0.05, generator=generator)
    save_adapter(folder, model, adapter, str(base))
    return folder


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, and two adapters of different ranks and scales on it."""
    root = tmp_path_factory.mktemp("mixed")
    base = build_tiny(request.param, root / "base")
    return (base, _make(base, root / "a", 1, LoraConfig(rank=4, alpha=8.0)),
            _make(base, root / "b", 2, LoraConfig(rank=2, alpha=3.0, rslora=True,
                                                  target_modules=("experts.down_proj", "v_proj"))))


def test_strengths_count_inside_of_the_experts(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Two adapters with strengths are W + 0.5 ΔW_a - 1.5 ΔW_b in every map, as the exact mix of both on the disk."""
    base, first, second = made
    model = _load(base)
    plain = _logits(model)
    adapters = AdapterSet(model)
    adapters.load("a", first)
    adapters.load("b", second)
    adapters.use({"a": 1.0})
    alone = _load(base)
    load_adapter(first, alone)
    assert torch.equal(_logits(model), _logits(alone))
    adapters.use({"a": 0.5, "b": -1.5})
    list(mix_adapters(MixAdapters((AdapterUse(first, 0.5), AdapterUse(second, -1.5)), tmp_path / "mix", how="cat"),
                      Control()))
    mixed = _load(base)
    load_adapter(tmp_path / "mix", mixed)
    torch.testing.assert_close(_logits(model), _logits(mixed), rtol=0, atol=1e-5)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "mix").eval()
    torch.testing.assert_close(_logits(mixed), _logits(reference), rtol=0, atol=1e-5)
    with pytest.raises(AdapterError, match="can not be merged in memory"):
        adapters.merge()
    adapters.use({"b": 1.0})
    adapters.close()
    assert torch.equal(_logits(model), plain)


def test_the_compatible_form_says_the_same(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, *adapters = made
    for number, folder in enumerate(adapters):
        out = tmp_path / str(number)
        out.mkdir()
        write_adapter(out, *compatible_form(read_adapter(folder)), {})
        reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out).eval()
        models = [_load(base), _load(base)]
        load_adapter(folder, models[0])
        load_adapter(out, models[1])
        torch.testing.assert_close(_logits(models[0]), _logits(models[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(_logits(models[0]), _logits(reference), rtol=0, atol=1e-5)
