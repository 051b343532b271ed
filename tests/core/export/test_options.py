"""Merging what stands beside linear updates: embeddings, heads, biases, whole modules; tied or not."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import some_quick
from transformers import AutoModelForCausalLM

from core.config import LoraConfig, ModelConfig, RunConfig
from core.jobs import Export
from core.lora.adaptation import Adaptation
from core.lora.adapter_file import save_adapter
from core.lora.method import Material
from core.models.inspect import read_card
from core.models.load import load_model
from core.runs.folder import RunFolder

sys.path.insert(0, str(Path(__file__).resolve().parent))

from export_help import run_export

IDS = torch.arange(20, 60)[None]
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {  # family, fields, does the tied pair part
    "biases of all": ("gpt2", {"target_modules": ("c_attn",), "bias": "all"}, False),
    "biases of the targets": ("qwen2", {"target_modules": ("q_proj",), "bias": "lora_only"}, False),
    "untied head and norms whole": ("qwen3", {"target_modules": ("q_proj",),
                                              "modules_to_save": ("lm_head", "input_layernorm")}, False),
    "tied head whole, parted": ("llama", {"target_modules": ("q_proj",), "modules_to_save": ("lm_head",)}, True),
    "tied embedding whole, kept tied": ("llama", {"target_modules": ("q_proj",), "modules_to_save": ("embed_tokens",),
                                                  "ensure_weight_tying": True}, False),
    "tied embedding": ("llama", {"target_modules": ("q_proj", "embed_tokens")}, True),
    "tied head": ("llama", {"target_modules": ("q_proj", "lm_head")}, True),
    "tied pair kept tied": ("llama", {"target_modules": ("embed_tokens",), "ensure_weight_tying": True}, False),
    "untied embedding and head": ("qwen3", {"target_modules": ("embed_tokens", "lm_head")}, False),
    "scaled embedding": ("gemma3", {"target_modules": ("q_proj", "embed_tokens")}, True),
    "gpt2 embeddings": ("gpt2", {"target_modules": ("wte", "wpe", "c_attn")}, True),
}


QUICK = ("tied embedding whole, kept tied", "untied embedding and head", "gpt2 embeddings")


def build(folder: Path, base: Path, fields: dict[str, Any]) -> tuple[RunFolder, torch.Tensor]:
    """A run whose trained numbers were moved, and what base + adapter answer."""
    run = RunFolder(folder)
    run.path.mkdir()
    adapter = LoraConfig(rank=4, alpha=6.0, **fields)
    config = RunConfig(model=ModelConfig(path=str(base)), adapter=adapter)
    run.write_config(config)
    model = load_model(base, torch.device("cpu"), torch.float32)
    adaptation = Adaptation(config)
    adaptation.install(model, Material([], 0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adaptation.parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        logits = model(IDS).logits
    save_adapter(run.adapter, model, adapter, str(base), {"base_fingerprint": read_card(base).fingerprint})
    return run, logits


@pytest.mark.parametrize("case", some_quick(CASES, QUICK))
def test_merged_equals_base_and_adapter_and_peft(case: str, bases: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    family, fields, parts = CASES[case]
    base = bases(family)
    run, expected = build(tmp_path / "run", base, fields)
    values, receipt, _ = run_export(Export(run.path, "merged", tmp_path / "out"))
    assert values["passed"], receipt and receipt.explanation
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=1e-4)
    head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
    if not merged.config.tie_word_embeddings:
        assert head.weight is not embedding.weight
    was_tied = AutoModelForCausalLM.from_pretrained(base).config.tie_word_embeddings
    assert merged.config.tie_word_embeddings == (was_tied and not parts)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run.adapter)
    if was_tied and any("embed" in name or name in ("wte", "lm_head") for name in
                        (*fields["target_modules"], *fields.get("modules_to_save", ()))):
        return  # peft merges into the shared tensor of a tied pair, on both sides
    weights = reference.merge_and_unload().state_dict()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("case", ["biases of all", "tied embedding", "tied head whole, parted",
                                  "untied head and norms whole"])
def test_in_sixteen_bit_with_a_receipt_and_as_an_adapter(case: str, bases: Any, tmp_path: Path) -> None:
    family, fields, _ = CASES[case]
    run, _ = build(tmp_path / "run", bases(family), fields)
    for number, job in enumerate((Export(run.path, "merged", tmp_path / "a", dtype="bf16"),
                                  Export(run.path, "adapter", tmp_path / "b"),
                                  Export(run.path, "adapter", tmp_path / "c", dtype="bf16"))):
        values, receipt, _ = run_export(job)
        assert values["passed"], (number, receipt and receipt.explanation)
