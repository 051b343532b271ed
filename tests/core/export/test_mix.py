"""Mixes against PEFT's add_weighted_adapter, and what can not be mixed."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import build_tiny

from core.config import DoraConfig, LoraConfig
from core.control import Control
from core.errors import AdapterError, CoreError
from core.events import Result, Warned
from core.export.mix import mix_adapters, truncated
from core.jobs import AdapterUse, MixAdapters
from core.lora.adapter_file import read_adapter, save_adapter
from core.lora.dora import DoraLayer
from core.lora.inject import inject, lora_layers
from core.lora.layers import LoraLayer
from core.models.load import load_model

TARGETS = ("q_proj", "v_proj", "down_proj")


def make(base: Path, folder: Path, seed: int, origin: dict[str, str] | None = None, **fields: object) -> Path:
    model = load_model(base, torch.device("cpu"), torch.float32)
    fields.setdefault("target_modules", TARGETS)
    dora = fields.pop("dora", False)
    adapter = (DoraConfig if dora else LoraConfig)(**fields)  # type: ignore[arg-type]
    inject(model, adapter, seed, DoraLayer if dora else LoraLayer)
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_b.data.normal_(0, 0.1, generator=generator)
    save_adapter(folder, model, adapter, str(base), origin)
    return folder


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mixed")
    return {
        "a": make(tiny_model, root / "a", 1, rank=4, alpha=8.0),
        "b": make(tiny_model, root / "b", 2, rank=4, alpha=3.0),
        "small": make(tiny_model, root / "small", 3, rank=2, alpha=2.0, target_modules=("q_proj",)),
        "rs": make(tiny_model, root / "rs", 4, rank=8, alpha=8.0, rslora=True),
        "dora": make(tiny_model, root / "dora", 5, rank=4, dora=True),
    }


def mix(out: Path, *uses: tuple[Path, float], **options: object) -> tuple[dict[str, object], list[object]]:
    job = MixAdapters(tuple(AdapterUse(path, strength) for path, strength in uses), out, **options)  # type: ignore[arg-type]
    events = list(mix_adapters(job, Control()))
    assert isinstance(events[-1], Result)
    return events[-1].values, events


def peft_deltas(base: Path, uses: list[tuple[Path, float]], how: str, rank: int | None) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_model(base, torch.device("cpu"), torch.float32), str(uses[0][0]), "0")
    for number, (path, _) in enumerate(uses[1:], 1):
        model.load_adapter(str(path), str(number))
    model.add_weighted_adapter([str(number) for number in range(len(uses))], [weight for _, weight in uses], "mix",
                               combination_type=how, svd_rank=rank)
    found = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A") and "mix" in module.lora_A:
            delta = module.get_delta_weight("mix")
            found[name] = delta.T if getattr(module, "fan_in_fan_out", False) else delta
    return found


@pytest.mark.parametrize(("how", "rank", "names", "weights"), [
    ("linear", 0, ("a", "b"), (0.7, 0.3)), ("linear", 0, ("a", "b"), (0.7, -0.5)),
    ("cat", 0, ("a", "b", "rs"), (0.7, -0.3, 1.2)), ("svd", 5, ("a", "b"), (0.7, 0.3)),
    ("svd", 0, ("a", "rs"), (1.0, -0.5)), ("cat", 0, ("small", "a"), (0.5, 1.0)),
])
def test_a_mix_is_that_of_peft(tiny_model: Path, adapters: dict[str, Path], tmp_path: Path, how: str, rank: int,
                               names: tuple[str, ...], weights: tuple[float, ...]) -> None:
    uses = [(adapters[name], weight) for name, weight in zip(names, weights, strict=True)]
    values, _ = mix(tmp_path / "mix", *uses, how=how, rank=rank)
    found = read_adapter(tmp_path / "mix")
    expected = peft_deltas(tiny_model, uses, how, rank or None)
    assert set(found.pairs) == set(expected)
    for name, pair in found.pairs.items():
        assert torch.allclose(pair.delta(), expected[name], atol=1e-5), name
    config = json.loads((tmp_path / "mix" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == values["rank"]
    if how == "cat":
        assert float(values["relative_error"]) < 1e-6  # type: ignore[arg-type]


def test_a_mix_of_gpt2_is_that_of_peft(tmp_path: Path) -> None:
    base = build_tiny("gpt2", tmp_path / "gpt2")
    uses = [(make(base, tmp_path / str(seed), seed, rank=4, target_modules=("c_attn", "c_proj")), 0.6)
            for seed in (1, 2)]
    for how in ("cat", "svd"):
        mix(tmp_path / how, *uses, how=how)
        expected = peft_deltas(base, uses, how, None)
        for name, pair in read_adapter(tmp_path / how).pairs.items():
            assert torch.allclose(pair.delta(), expected[name], atol=1e-5), name


def test_linear_and_a_low_rank_tell_their_error(adapters: dict[str, Path], tmp_path: Path) -> None:
    for how, rank in (("linear", 0), ("svd", 2)):
        values, events = mix(tmp_path / how, (adapters["a"], 0.5), (adapters["b"], 0.5), how=how, rank=rank)
        assert float(values["relative_error"]) > 0.05  # type: ignore[arg-type]
        assert any(isinstance(event, Warned) for event in events)
    whole, _ = mix(tmp_path / "whole", (adapters["a"], 0.5), (adapters["b"], 0.5), how="svd", rank=8)
    assert float(whole["relative_error"]) < 1e-6  # type: ignore[arg-type]


def test_the_mix_says_where_it_comes_from(tiny_model: Path, tmp_path: Path) -> None:
    origin = {"base_fingerprint": "1", "base_name": "tiny", "base_path": str(tiny_model), "data_digest": "x"}
    one, two = (make(tiny_model, tmp_path / str(seed), seed, origin) for seed in (1, 2))
    mix(tmp_path / "mix", (one, 0.5), (two, 2.0))
    found = read_adapter(tmp_path / "mix").origin
    assert found["base_fingerprint"] == "1"
    assert "data_digest" not in found
    assert found["mixed_from"] == [{"adapter": "1", "strength": 0.5}, {"adapter": "2", "strength": 2.0}]


def test_what_can_not_be_mixed_is_refused_and_nothing_is_left(tiny_model: Path, adapters: dict[str, Path],
                                                              tmp_path: Path) -> None:
    out = tmp_path / "mix"
    with pytest.raises(AdapterError, match=r"DoRA"):
        mix(out, (adapters["a"], 1.0), (adapters["dora"], 1.0))
    with pytest.raises(AdapterError, match="different ranks"):
        mix(out, (adapters["a"], 1.0), (adapters["small"], 1.0), how="linear")
    with pytest.raises(AdapterError, match="rank can only be chosen"):
        mix(out, (adapters["a"], 1.0), how="cat", rank=3)
    with pytest.raises(CoreError, match="nothing to mix"):
        mix(out)
    with pytest.raises(CoreError, match="not a finite number"):
        mix(out, (adapters["a"], float("nan")))
    with pytest.raises(AdapterError, match="too large for fp16"):
        mix(out, (adapters["a"], 1e8), save_dtype="fp16")
    one = make(tiny_model, tmp_path / "1", 1, {"base_fingerprint": "1"})
    two = make(tiny_model, tmp_path / "2", 2, {"base_fingerprint": "2"})
    with pytest.raises(AdapterError, match="another base model"):
        mix(out, (one, 1.0), (two, 1.0))
    assert not out.exists()
    assert not list(tmp_path.glob(".mix*"))
    out.mkdir()
    with pytest.raises(CoreError, match="exists already"):
        mix(out, (adapters["a"], 1.0))


def test_the_small_decomposition_is_the_large_one() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(40, 60, generator=generator).double(), torch.randn(60, 30, generator=generator).double()
    u, s, vh = torch.linalg.svd(left @ right, full_matrices=False)
    found_left, found_right = truncated(left, right, 7)
    assert torch.allclose(found_left @ found_right, (u[:, :7] * s[:7]) @ vh[:7], atol=1e-9)
