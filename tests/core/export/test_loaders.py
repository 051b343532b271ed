"""The verdicts on how loaders read an adapter, and the compatible form against PEFT and the plain formulas."""

import math
from pathlib import Path

import pytest
import torch
from export_help import build_run, run_export

from core.config import LoraConfig, ModelConfig, RunConfig
from core.errors import AdapterError
from core.export.inspect_adapter import describe, facts_of
from core.export.loaders import AdapterFacts, facts_of_config, verdicts
from core.jobs import Export
from core.lora.adapter_file import read_adapter, save_adapter
from core.lora.inject import inject, lora_layers
from core.models.load import load_model
from core.runs.folder import RunFolder


def facts(**changes: object) -> AdapterFacts:
    plain = {"kind": "LORA", "ranks": {"q": 8, "v": 8}, "scales": {"q": 2.0, "v": 2.0}, "rank": 8, "alpha": 16.0}
    return AdapterFacts(**{**plain, **changes})  # type: ignore[arg-type]


def reads(found: AdapterFacts) -> tuple[str, ...]:
    return tuple(verdict.reads for verdict in verdicts(found))


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, ("exactly", "exactly", "exactly")),
    ({"rslora": True, "scales": dict.fromkeys("qv", 16 / math.sqrt(8))}, ("exactly", "exactly", "wrongly")),
    ({"ranks": {"q": 8, "v": 4}, "scales": {"q": 2.0, "v": 4.0}}, ("exactly", "wrongly", "exactly")),
    ({"scales": {"q": 2.0, "v": 1.0}}, ("exactly", "wrongly", "wrongly")),  # alpha_pattern
    ({"dora": True}, ("exactly", "refuses", "refuses")),
    ({"bias": "all"}, ("exactly", "refuses", "refuses")),
    ({"saved": ("lm_head",)}, ("exactly", "refuses", "refuses")),
    ({"new_tokens": True}, ("exactly", "refuses", "refuses")),
    ({"kind": "ADALORA"}, ("exactly", "refuses", "refuses")),
    ({"embeddings": ("embed",)}, ("exactly", "refuses", "exactly")),
    ({"convolutions": ("conv",)}, ("exactly", "refuses", "refuses")),
    ({"rank": 1024, "ranks": {"q": 1024}, "scales": {"q": 2.0}, "alpha": 2048.0}, ("exactly", "refuses", "exactly")),
])
def test_verdicts(changes: dict[str, object], expected: tuple[str, ...]) -> None:
    assert reads(facts(**changes)) == expected


def test_a_higher_rank_names_the_setting_that_vllm_needs() -> None:
    ranked = facts(rank=24, ranks={"q": 24}, scales={"q": 2.0}, alpha=48.0)
    assert "--max-lora-rank 32" in verdicts(ranked)[1].why
    assert "16" in verdicts(facts())[1].why


def test_rows_of_new_tokens_need_room_in_peft() -> None:
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
    for indices, rows in (({"embed_tokens": [3, 385], "lm_head": [3, 385]}, 386), ([7], 8), (None, 0)):
        found = facts_of_config({**config, "trainable_token_indices": indices}, {"q": 8}, {"q": 2.0})
        assert (f"resize_token_embeddings({rows})" in verdicts(found)[0].why) == (rows > 0)


def build_patterned(folder: Path, base: Path) -> RunFolder:
    """A run whose adapter has rsLoRA and other ranks and alphas in places: two loaders misread it."""
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    adapter = LoraConfig(rank=4, alpha=8.0, rslora=True, rank_pattern={"q_proj": 6}, alpha_pattern={"down_proj": 3.0})
    run.write_config(RunConfig(model=ModelConfig(path=str(base)), adapter=adapter))
    model = load_model(base, torch.device("cpu"), torch.float32)
    inject(model, adapter, seed=0)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        layer.lora_b.data.normal_(0, 0.05, generator=generator)
    save_adapter(run.adapter, model, adapter, str(base))
    return run


@pytest.mark.parametrize("dtype", ["base", "bf16"])
def test_the_compatible_form_is_the_same_adapter_for_everybody(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    run = build_patterned(tmp_path / "run", tiny_model)
    before = read_adapter(run.adapter)
    assert reads(facts_of(before)) == ("exactly", "wrongly", "wrongly")
    assert describe(before).best_form == "compatible"
    values, receipt, _ = run_export(Export(run.path, "adapter", tmp_path / "out", form="compatible",
                                           dtype=dtype))  # type: ignore[arg-type]
    assert receipt is not None
    assert receipt.passed, receipt.explanation
    after = read_adapter(tmp_path / "out")
    assert reads(facts_of(after)) == ("exactly", "exactly", "exactly")
    assert after.config["r"] == after.config["lora_alpha"] == 6
    assert not after.config["use_rslora"]
    for name, pair in after.pairs.items():
        assert pair.lora_a.shape[0] == 6
        assert torch.allclose(pair.delta(), before.pairs[name].delta(), atol=1e-6 if dtype == "base" else 2e-3)
        assert after.config["lora_alpha"] / pair.lora_a.shape[0] == pair.scale == 1.0
    assert values["passed"]


def test_peft_reads_the_compatible_form_the_same(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    run = build_patterned(tmp_path / "run", tiny_model)
    run_export(Export(run.path, "adapter", tmp_path / "out", form="compatible", receipt=False))
    ids = torch.arange(3, 40)[None]
    logits = []
    for folder in (run.adapter, tmp_path / "out"):
        model = PeftModel.from_pretrained(load_model(tiny_model, torch.device("cpu"), torch.float32), str(folder))
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    assert torch.allclose(*logits, atol=1e-5)


def test_plain_lora_stays_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    made = build_run(tmp_path / "run", tiny_model)
    adapter = read_adapter(made.run.adapter)
    assert describe(adapter).best_form == "peft"


def test_an_adapter_made_elsewhere_is_exported_and_merged(tiny_model: Path, tmp_path: Path) -> None:
    made = build_run(tmp_path / "run", tiny_model)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (elsewhere / name).write_bytes((made.run.adapter / name).read_bytes())
    for to in ("adapter", "merged"):
        values, receipt, _ = run_export(Export(elsewhere, to, tmp_path / to, base=str(tiny_model)))  # type: ignore[arg-type]
        assert receipt is not None
        assert receipt.passed
        assert "elsewhere" in (tmp_path / to / "README.md").read_text()
        assert values["path"] == tmp_path / to


def test_an_adapter_made_elsewhere_must_fit_its_base(tiny_model: Path, tmp_path: Path) -> None:
    from tiny_models import build_tiny

    made = build_run(tmp_path / "run", tiny_model)
    (made.run.adapter / "workbench.json").unlink()
    other = build_tiny("qwen3", tmp_path / "other")
    with pytest.raises(AdapterError, match=r"model\.layers\.\d"):
        run_export(Export(made.run.adapter, "merged", tmp_path / "out", base=str(other)))
    assert not (tmp_path / "out").exists()


def test_joint_updates_of_experts() -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_parameters": ["experts.down_proj"]}
    facts = facts_of_config(config, {"experts.down_proj.0": 4}, {"experts.down_proj.0": 2.0})
    assert [verdict.reads for verdict in verdicts(facts)] == ["exactly", "refuses", "refuses"]
    config["target_parameters"] = ["mlp.down_proj.weight"]  # a linear layer that PEFT finds in this way only
    facts = facts_of_config(config, {"mlp.down_proj": 4}, {"mlp.down_proj": 2.0})
    assert [verdict.reads for verdict in verdicts(facts)] == ["exactly"] * 3
