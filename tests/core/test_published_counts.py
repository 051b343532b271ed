"""Parameter counts that papers have published, from a config.json alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.__main__ import main

GPT3 = {"model_type": "gpt2", "n_layer": 96, "n_embd": 12288, "n_head": 96, "n_positions": 2048, "vocab_size": 50257}
ROBERTA = {"model_type": "roberta", "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12,
           "intermediate_size": 3072, "vocab_size": 50265, "max_position_embeddings": 514, "is_decoder": True}
LLAMA = {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
         "intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 2048}


def count(folder: Path, model: dict[str, Any], capsys: pytest.CaptureFixture[str], *changes: str) -> dict[str, Any]:
    """What `estimate` says of a model folder with nothing but this config.json."""
    (folder / "config.json").write_text(json.dumps(model))
    (folder / "run.toml").write_text(f"[model]\npath = {json.dumps(str(folder))}\n[adapter]\ntarget_modules = 'q-v'\n")
    options = [argument for change in changes for argument in ("--set", change)]
    assert main(["estimate", str(folder / "run.toml"), *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(("model", "rank", "millions"), [
    (GPT3, 1, 4.7),  # arXiv 2106.09685, table 4
    (GPT3, 8, 37.7),
    (ROBERTA, 8, 0.3),  # table 2
    (LLAMA, 8, 4.2),
], ids=["GPT-3 r=1", "GPT-3 r=8", "RoBERTa-base r=8", "LLaMA-7B r=8"])
def test_query_and_value_counts_are_the_published_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: dict[str, Any], rank: int, millions: float,
) -> None:
    parts = [] if model is not GPT3 else ['adapter.fused_parts=["q", "v"]']
    values = count(tmp_path, model, capsys, f"adapter.rank={rank}", *parts)
    assert round(values["trainable_parameters"] / 1e6, 1) == millions


def test_an_adapter_of_llama_is_8_4_megabytes_in_16_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = count(tmp_path, LLAMA, capsys, "adapter.rank=8", "adapter.save_dtype=bf16")
    assert round(values["adapter_bytes"] / 1e6, 1) == 8.4
