"""After QLoRA: merged into the original weights or into those that training saw. After full fine-tuning: the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from export_help import run_export
from tiny_models import some_quick

from core.config import ModelConfig, QLoraConfig, RunConfig, parse_config
from core.control import Control
from core.errors import AdapterError
from core.export.inspect_adapter import describe
from core.jobs import Export, Train
from core.lora.adapter_file import read_adapter, save_adapter
from core.lora.attach import load_adapter
from core.lora.inject import inject, lora_layers
from core.lora.qlora import QLoraLayer
from core.models.inspect import read_card
from core.models.load import load_model
from core.models.quantise import ORIGIN_KEY, Quantisation, quantisation_of
from core.runs.folder import RunFolder
from core.training.loop import train

CPU = torch.device("cpu")
IDS = torch.arange(3, 40)[None]


def _qlora_run(folder: Path, base: Path, kind: str = "nf4", computed_in: torch.dtype = torch.float32) -> RunFolder:
    pytest.importorskip("bitsandbytes")
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    adapter = QLoraConfig(rank=4, quantisation=kind)  # type: ignore[arg-type]
    run.write_config(RunConfig(model=ModelConfig(path=str(base)), adapter=adapter))
    quantisation = quantisation_of(adapter, computed_in)
    assert quantisation is not None
    model = load_model(base, CPU, computed_in, quantisation)
    inject(model, adapter, 0, QLoraLayer)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        layer.lora_b.data.normal_(0, 0.05, generator=generator)
    card = read_card(base)
    save_adapter(run.adapter, model, adapter, str(base), {
        "base_fingerprint": card.fingerprint, "base_name": card.name, ORIGIN_KEY: quantisation.to_plain()})
    return run


def _tried(run: RunFolder, base: Path, quantisation: Quantisation) -> torch.Tensor:
    model = load_model(base, CPU, quantisation.computed_in, quantisation)
    load_adapter(run.adapter, model)
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits.float()


def _merged(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder, CPU, torch.float32)(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("family", some_quick(["llama", "gpt2", "phi3"], ["llama"]))
@pytest.mark.parametrize("kind", some_quick(["nf4", "int8"], ["nf4"]))
def test_dequantised_is_what_was_tried(tmp_path: Path, bases: Callable[[str], Path], family: str, kind: str) -> None:
    base = bases(family)
    run = _qlora_run(tmp_path / "run", base, kind)
    values, receipt, _ = run_export(Export(run.path, "merged", tmp_path / "out", merge_into="dequantised"))
    assert receipt is not None and receipt.passed, values
    assert f"dequantised base ({'int8' if kind == 'int8' else 'NF4 with double quantisation'})" in receipt.explanation
    difference = _merged(tmp_path / "out") - _tried(run, base, Quantisation(kind, kind == "nf4"))  # type: ignore[arg-type]
    assert float(difference.abs().max()) < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["out", "run"]  # nothing is left


def test_original_is_the_adapter_on_the_base_itself_and_says_how_far_that_is(tmp_path: Path,
                                                                             bases: Callable[[str], Path]) -> None:
    base = bases("llama")
    run = _qlora_run(tmp_path / "run", base)
    _, receipt, _ = run_export(Export(run.path, "merged", tmp_path / "out"))
    assert receipt is not None and receipt.passed
    assert "trained over the base in NF4 with double quantisation" in receipt.explanation
    model = load_model(base, CPU, torch.float32)
    load_adapter(run.adapter, model)
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False).logits
    assert torch.allclose(_merged(tmp_path / "out"), expected, atol=1e-4)
    assert not torch.allclose(expected, _tried(run, base, Quantisation("nf4", True)), atol=1e-2)


@pytest.mark.full
def test_a_base_computed_in_bf16_is_dequantised_to_bf16(tmp_path: Path, bases: Callable[[str], Path]) -> None:
    run = _qlora_run(tmp_path / "run", bases("qwen3"), computed_in=torch.bfloat16)
    job = Export(run.path, "merged", tmp_path / "out", merge_into="dequantised", dtype="fp32")
    _, receipt, _ = run_export(job)
    assert receipt is not None and receipt.passed
    tried = _tried(run, bases("qwen3"), Quantisation("nf4", True, torch.bfloat16))
    assert float((_merged(tmp_path / "out") - tried).abs().max()) < 0.2  # bf16 arithmetic


def test_the_adapter_names_its_base_and_how_it_was_held(tmp_path: Path, bases: Callable[[str], Path]) -> None:
    run = _qlora_run(tmp_path / "run", bases("llama"))
    _, receipt, _ = run_export(Export(run.path, "adapter", tmp_path / "out"))
    assert receipt is not None and receipt.passed
    found = read_adapter(tmp_path / "out")
    assert found.config["base_model_name_or_path"] == "llama"
    assert found.origin[ORIGIN_KEY] == {"kind": "nf4", "double": True, "computed_in": "fp32"}
    card = describe(found)
    assert card.quantisation == "nf4"
    own = card.settings["adapter"]
    assert (own["method"], own["double_quantisation"]) == ("qlora", True)  # where it goes on


def test_the_choice_is_only_for_merged_models_of_quantised_bases(tmp_path: Path, made: Any,
                                                                 bases: Callable[[str], Path]) -> None:
    run = _qlora_run(tmp_path / "q", bases("llama"))
    base = str(made.base)
    for job in (Export(made.run.path, "merged", tmp_path / "out", merge_into="dequantised"),
                Export(run.path, "adapter", tmp_path / "out", merge_into="dequantised"),
                Export(made.run.adapter, "merged", tmp_path / "out", base=base, merge_into="dequantised"),
                Export(run.adapter, "adapter", tmp_path / "out", base=base, merge_into="dequantised")):
        with pytest.raises(AdapterError, match="Only a merged model of a QLoRA run"):
            run_export(job)


def test_the_folder_of_an_adapter_is_merged_into_what_it_was_trained_over(tmp_path: Path,
                                                                          bases: Callable[[str], Path]) -> None:
    run = _qlora_run(tmp_path / "run", bases("llama"))
    job = Export(run.adapter, "merged", tmp_path / "out", base=str(bases("llama")), merge_into="dequantised")
    _, receipt, _ = run_export(job)
    assert receipt is not None and receipt.passed
    difference = _merged(tmp_path / "out") - _tried(run, bases("llama"), Quantisation("nf4", True))
    assert float(difference.abs().max()) < 1e-4


@pytest.fixture
def full_run(tmp_path: Path, bases: Callable[[str], Path]) -> RunFolder:
    data = tmp_path / "rows.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"How many? {number}"},
                          {"role": "assistant", "content": f"I would like {number}."}]} for number in range(12)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    config = parse_config({
        "model": {"path": str(bases("llama"))}, "adapter": {"method": "full"}, "data": {"train": [str(data)]},
        "training": {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 2, "device": "cpu"}})
    list(train(Train(config, tmp_path / "run"), Control()))
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("checkpoint", some_quick(["", "step-000002"], [""]))
@pytest.mark.parametrize("dtype", some_quick(["base", "bf16"], ["bf16"]))
def test_a_fine_tuned_model_is_exported_whole(tmp_path: Path, full_run: RunFolder, checkpoint: str, dtype: Any) -> None:
    _, receipt, _ = run_export(Export(full_run.path, "merged", tmp_path / "out", checkpoint, dtype))
    assert receipt is not None and receipt.passed
    assert "equals the fine-tuned model" in receipt.explanation
    assert (receipt.realised_delta_error > 0) == (dtype == "bf16")
    written = dict(load_model(tmp_path / "out", CPU, torch.float32).named_parameters())
    final = dict(load_model(full_run.model, CPU, torch.float32).named_parameters())
    same = all(torch.equal(tensor, final[name] if dtype == "base" else final[name].bfloat16().float())
               for name, tensor in written.items())
    assert same == (checkpoint == "")
    assert "full fine-tuning" in (tmp_path / "out" / "README.md").read_text()


def test_a_fine_tuned_model_has_no_adapter_to_export(tmp_path: Path, full_run: RunFolder) -> None:
    with pytest.raises(AdapterError, match="has no adapter"):
        run_export(Export(full_run.path, "adapter", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
