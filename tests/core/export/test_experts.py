"""Mixtures exported: merged expert by expert, as peft merges them, proven whole and layer by layer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_help import build_run, run_export
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import MIXTURES, some_quick
from transformers import AutoModelForCausalLM

from core.config import LoraConfig, ModelConfig, RunConfig
from core.errors import AdapterError, ModelError
from core.export import receipt
from core.export.keys import match_keys, skeleton
from core.export.plan import plan_merge
from core.export.shards import read_checkpoint
from core.jobs import Export
from core.lora.adapter_file import read_adapter, save_adapter
from core.lora.experts import expert_matrices
from core.lora.inject import inject, lora_layers
from core.models.inspect import read_card
from core.models.load import load_model
from core.runs.folder import RunFolder


def make(folder: Path, base: Path, strength: float = 0.05) -> RunFolder:
    """A run on all linear layers, the experts among them, as if it had been trained."""
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    adapter = LoraConfig(rank=4, alpha=8.0)
    run.write_config(RunConfig(model=ModelConfig(path=str(base)), adapter=adapter))
    model = load_model(base, torch.device("cpu"), torch.float32)
    inject(model, adapter, seed=0)
    generator = torch.Generator().manual_seed(1)
    for layer in [*lora_layers(model).values(), *expert_matrices(model).values()]:
        layer.lora_b.data.normal_(0, strength, generator=generator)
    card = read_card(base)
    save_adapter(run.adapter, model, adapter, str(base), {"base_fingerprint": card.fingerprint, "base_name": card.name})
    return run


@pytest.mark.parametrize("family", some_quick(MIXTURES))
def test_equals_the_merge_of_peft(family: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    run = make(tmp_path / "run", bases(family))
    values, proof, _ = run_export(Export(run.path, "merged", tmp_path / "out"))
    assert proof is not None
    assert values["passed"], proof.explanation
    base = AutoModelForCausalLM.from_pretrained(bases(family), dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, str(run.adapter)).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert found.keys() == expected.keys()
    moved = 0
    plain = AutoModelForCausalLM.from_pretrained(bases(family)).state_dict()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 1e-6, name
        moved += "experts" in name and not torch.equal(tensor, plain[name])
    assert moved >= 2
    assert {path.name for path in bases(family).glob("*.safetensors")} == {
        path.name for path in (tmp_path / "out").glob("*.safetensors")}


@pytest.mark.parametrize("family", some_quick(MIXTURES))
@pytest.mark.parametrize(("to", "dtype"), [
    ("merged", "bf16"), pytest.param("merged", "fp32", marks=pytest.mark.full),
    pytest.param("adapter", "fp16", marks=pytest.mark.full)])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "layer by layer"])
def test_is_proven(family: str, to: str, dtype: str, whole: bool, bases: Callable[[str], Path], tmp_path: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt, "fits_whole", lambda _case: whole)
    run = make(tmp_path / "run", bases(family))
    values, proof, _ = run_export(Export(run.path, to, tmp_path / "out", dtype=dtype))  # type: ignore[arg-type]
    assert proof is not None
    assert values["passed"], proof.explanation
    assert proof.rows
    if to == "adapter":
        assert set(read_adapter(tmp_path / "out").pairs) == set(read_adapter(run.adapter).pairs)


def joined(base: Path, folder: Path) -> Path:
    """The same checkpoint with the experts of every layer in one tensor, as the model has them."""
    folder.mkdir()
    for path in base.iterdir():
        if path.suffix != ".safetensors" and not path.name.endswith("index.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    state = AutoModelForCausalLM.from_pretrained(base).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    return folder


@pytest.mark.full
def test_a_checkpoint_with_joint_experts(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = joined(bases("mixtral"), tmp_path / "base")
    run = make(tmp_path / "run", base)
    values, proof, _ = run_export(Export(run.path, "merged", tmp_path / "out"))
    assert proof is not None
    assert values["passed"], proof.explanation
    other = make(tmp_path / "other", bases("mixtral"))
    run_export(Export(other.path, "merged", tmp_path / "split"))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "split").state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    name = "model.layers.0.mlp.experts.down_proj"
    assert load_file(tmp_path / "out" / "model.safetensors")[name].ndim == 3


def test_what_does_not_fit_is_named(bases: Callable[[str], Path], tmp_path: Path) -> None:
    run = make(tmp_path / "run", bases("mixtral"))
    checkpoint = read_checkpoint(bases("mixtral"))
    keys = match_keys(skeleton(bases("mixtral")), checkpoint.tensors)
    contents = read_adapter(run.adapter).contents
    name = "model.layers.1.mlp.experts.down_proj"
    pairs = {key: pair for key, pair in contents.pairs.items() if key != f"{name}.3"}
    with pytest.raises(AdapterError, match=rf"update of {name} is for 3 experts"):
        plan_merge(checkpoint, keys, contents.__class__(pairs=pairs), "base")
    unknown = {key: place for key, place in keys.experts.items() if place.parameter != name}
    with pytest.raises(ModelError, match=f"{name}, which the base's files store in another form"):
        plan_merge(checkpoint, keys.__class__(**{**keys.__dict__, "experts": unknown}), contents, "base")


@pytest.mark.full
def test_parts_of_fused_layers_are_merged(bases: Callable[[str], Path], tmp_path: Path) -> None:
    for family in ("gpt2", "phi3", "gpt_neox"):
        base = bases(family)
        made = build_run(tmp_path / family, base)
        adapter = LoraConfig(rank=4, alpha=8.0, fused_parts=("q", "v"))
        model = load_model(base, torch.device("cpu"), torch.float32)
        for layer in inject(model, adapter, seed=0).values():
            torch.nn.init.normal_(layer.lora_b, std=0.05)
        for path in made.run.adapter.iterdir():
            path.unlink()
        made.run.adapter.rmdir()
        save_adapter(made.run.adapter, model, adapter, str(base))
        values, proof, _ = run_export(Export(made.run.path, "merged", tmp_path / f"{family} out"))
        assert proof is not None
        assert values["passed"], proof.explanation
