"""What is told of an adapter: ranks, scales, its base on this machine, its norms; and what is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from export_help import build_run
from safetensors.torch import load_file, save_file
from tiny_models import build_tiny

from core.control import Control
from core.errors import AdapterError
from core.events import AdapterInspected, Result
from core.export.inspect_adapter import inspect_adapter
from core.jobs import InspectAdapter
from core.lora.adapter_file import read_adapter
from core.lora.attach import load_adapter
from core.models.load import load_model
from core.records import AdapterCard


def inspected(adapter: Path, model: str = "") -> AdapterCard:
    events = list(inspect_adapter(InspectAdapter(adapter, model), Control()))
    assert isinstance(events[-1], Result)
    return next(event.card for event in events if isinstance(event, AdapterInspected))


@pytest.fixture
def library(home: Path) -> Path:
    (home / "models").mkdir(parents=True)
    return home / "models"


def test_an_adapter_of_ours_finds_the_very_base_it_was_trained_on(library: Path, tmp_path: Path) -> None:
    build_tiny("llama", library / "other", seed=5)
    base = build_tiny("llama", library / "right")
    made = build_run(tmp_path / "run", base)
    card = inspected(made.run.path)
    assert [(match.name, match.match) for match in card.bases] == [("right", "same")]
    assert (card.method, card.rank, card.base, card.name) == ("LoRA", 4, "right", "run")
    weights = load_model(base, torch.device("cpu"), torch.float32).state_dict()
    pairs = read_adapter(made.run.adapter).pairs
    assert {module.name for module in card.modules} == set(pairs)
    for module in card.modules:
        delta, weight = pairs[module.name].delta(), weights[f"{module.name}.weight"]
        assert module.delta_norm == pytest.approx(float(delta.norm()), rel=1e-5)
        assert module.share == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-5)
        assert (module.rank, module.scale) == (4, 2.0)
    assert [verdict.reads for verdict in card.loaders] == ["exactly"] * 3
    assert card.settings["adapter"]["rank"] == 4
    assert card.settings["adapter"]["start_from"] == str(made.run.adapter)


def test_one_made_elsewhere_is_matched_by_its_shapes(library: Path, tmp_path: Path) -> None:
    base = build_tiny("llama", library / "llama-a")
    build_tiny("llama", library / "llama-b", seed=3)
    build_tiny("gpt2", library / "gpt2")
    made = build_run(tmp_path / "run", base)
    (made.run.adapter / "workbench.json").unlink()
    config = json.loads((made.run.adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "somebody/llama-b"
    (made.run.adapter / "adapter_config.json").write_text(json.dumps(config))
    card = inspected(made.run.adapter)
    assert [(match.name, match.match) for match in card.bases] == [("llama-b", "fits"), ("llama-a", "fits")]
    assert card.base == ""
    assert card.origin == "Made with another program."
    named = inspected(made.run.adapter, "llama-a")
    assert named.base == "llama-a"
    assert all(module.share is not None for module in named.modules)


def test_a_grown_vocabulary_finds_its_base_and_wrong_sizes_do_not(library: Path, tmp_path: Path) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = build_tiny("qwen3", library / "qwen")
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reference.resize_token_embeddings(387)
    for name, fields in (("adapted", {"target_modules": ["embed_tokens", "q_proj"]}),
                         ("whole", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "norm"]})):
        model = get_peft_model(reference, PeftConfig(r=2, task_type="CAUSAL_LM", **fields))
        model.save_pretrained(tmp_path / name)
        reference = model.unload()
        assert [match.name for match in inspected(tmp_path / name).bases] == ["qwen"]
        load_adapter(tmp_path / name, load_model(base, torch.device("cpu"), torch.float32))
    path = tmp_path / "whole" / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(name for name in tensors if name.endswith("model.norm.weight"))
    save_file(tensors | {key: torch.ones(5)}, path)
    assert inspected(tmp_path / "whole").bases == ()


def test_the_named_base_must_fit(library: Path, tmp_path: Path) -> None:
    base = build_tiny("llama", library / "llama")
    build_tiny("gpt_neox", library / "neox")
    made = build_run(tmp_path / "run", base)
    with pytest.raises(AdapterError, match=r"does not fit neox: model\.layers\.0"):
        inspected(made.run.adapter, "neox")


def test_damage_is_refused_by_the_module_s_name(library: Path, tmp_path: Path) -> None:
    base = build_tiny("llama", library / "llama")
    made = build_run(tmp_path / "run", base)
    path = made.run.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(name for name in tensors if "layers.1.mlp.up_proj.lora_B" in name)
    tensors[key][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"layers\.1\.mlp\.up_proj"):
        inspected(made.run.adapter)
