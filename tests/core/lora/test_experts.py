"""LoRA on the experts of mixtures, with peft's ParamWrapper as the oracle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import MIXTURES, build_tiny, some_quick
from torch import nn
from transformers import AutoModelForCausalLM, GptOssConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from core.adapter_shapes import adapter_shapes, trained_parameters
from core.config import DoraConfig, LoraConfig, RunConfig
from core.errors import AdapterError
from core.lora.adapter_file import adapter_tensors, read_adapter, save_adapter
from core.lora.attach import load_adapter
from core.lora.experts import ExpertsLayer, expert_matrices, wrap_expert
from core.lora.inject import adapter_disabled, inject, lora_layers, module_table, remove
from core.lora.start import start_from
from core.models.load import load_model
from core.start import settings_from
from core.targets import select_targets

IDS = torch.arange(20, 60)[None]
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


def _load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_model(folder, torch.device("cpu"), dtype)


def _trained(model: nn.Module, adapter: LoraConfig) -> None:
    """Put the adapter on, with a random B, as if it had been trained."""
    inject(model, adapter, seed=0)
    generator = torch.Generator().manual_seed(1)
    for layer in [*lora_layers(model).values(), *expert_matrices(model).values()]:
        layer.lora_b.data.normal_(0, 0.05, generator=generator)


def _peft(base: Path, parameters: list[str], modules: list[str], dtype: torch.dtype = torch.float32,
          **options: Any) -> PeftModel:
    config = PeftConfig(r=4, lora_alpha=12, target_modules=modules, target_parameters=parameters,
                        init_lora_weights=False, task_type="CAUSAL_LM", **options)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if dtype == torch.float64:
        plain.set_experts_implementation("eager")
    model = get_peft_model(plain, config).eval()
    assert isinstance(model, PeftModel)
    return model


@pytest.mark.parametrize("family", some_quick(MIXTURES))
@pytest.mark.parametrize("adapter", [
    LoraConfig(rank=4, alpha=6.0),
    LoraConfig(rank=4, target_modules=("down_proj",), rslora=True),
    LoraConfig(rank=4, target_modules=("experts.gate_up_proj", "q_proj"),
               rank_pattern={"experts.gate_up_proj": 2}, alpha_pattern={"experts.gate_up_proj": 5.0}),
], ids=["all-linear", "down", "patterns"])
def test_peft_reads_ours(family: str, adapter: LoraConfig, tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    model = _load(base)
    with torch.no_grad():
        plain = model(IDS).logits
    _trained(model, adapter)
    assert expert_matrices(model)
    save_adapter(tmp_path / "adapter", model, adapter, str(base))
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    again = _load(base)
    load_adapter(tmp_path / "adapter", again)
    with torch.no_grad():
        logits = model(IDS).logits
        assert (logits - plain).abs().max() > 0.1
        torch.testing.assert_close(logits, reference(IDS).logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(logits, again(IDS).logits, rtol=0, atol=1e-5)
        with adapter_disabled(model):
            torch.testing.assert_close(model(IDS).logits, plain, rtol=0, atol=0)
        remove(model)
        torch.testing.assert_close(model(IDS).logits, plain, rtol=0, atol=0)
    assert not any(isinstance(module, ExpertsLayer) for module in model.modules())


@pytest.mark.parametrize("family", some_quick(MIXTURES))
@pytest.mark.parametrize(("parameters", "modules"), [
    (BOTH, []), (["mlp.experts.gate_up_proj"], ["q_proj"]), (["down_proj"], []),
    (["model.layers.0.mlp.experts.down_proj"], ["v_proj"]),
], ids=["both", "gate and q", "down", "one layer"])
def test_ours_reads_peft(family: str, parameters: list[str], modules: list[str], tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    reference = _peft(base, parameters, modules)
    reference.save_pretrained(tmp_path / "adapter")
    model = _load(base)
    load_adapter(tmp_path / "adapter", model)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", some_quick(MIXTURES))
def test_gradients_and_ten_steps_are_those_of_peft(family: str, tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    reference = _peft(base, BOTH, ["q_proj"], torch.float64)
    reference.double().save_pretrained(tmp_path / "adapter")
    model = _load(base, torch.float64)
    load_adapter(tmp_path / "adapter", model)
    ours = {}
    for name, layer in (lora_layers(model) | expert_matrices(model)).items():
        layer.double()
        ours |= {f"{name}.lora_a": layer.lora_a, f"{name}.lora_b": layer.lora_b}
    theirs = [parameter for parameter in reference.parameters() if parameter.requires_grad]
    optimizers = [torch.optim.AdamW(each, lr=1e-2) for each in (list(ours.values()), theirs)]
    for step in range(10):
        for trained, optimizer in zip((model, reference), optimizers, strict=True):
            optimizer.zero_grad()
            trained(input_ids=IDS, labels=IDS).loss.backward()
        if step == 0:
            _compare(model, reference, "grad", 1e-9)
        for optimizer in optimizers:
            optimizer.step()
    _compare(model, reference, "data", 1e-7)


def _compare(model: PreTrainedModel, reference: PeftModel, what: str, tolerance: float) -> None:
    """Every A and B of experts against PEFT's, as they are or their gradients, relative."""
    from core.expert_names import written_module
    from core.lora.expert_layout import to_file

    parameters = dict(reference.named_parameters())
    matrices = expert_matrices(model)
    for name, matrix in matrices.items():
        parts = to_file(getattr(matrix.lora_a, what), getattr(matrix.lora_b, what))
        for part, found in parts.items():
            key = f"base_model.model.{written_module(name, matrices)}.{part.replace('.weight', '.default.weight')}"
            expected = getattr(parameters[key], what)
            assert (found - expected).norm() <= tolerance * expected.norm(), key


def test_transposed_weights_with_biases(tmp_path: Path) -> None:
    """gpt-oss keeps (experts, in, out), biases, and a gate of its own; peft has B and A in the same way."""
    config = GptOssConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
                          initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[GptOssConfig](config).eval()
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter.data.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "base")
    model.requires_grad_(False)
    reference = _peft(tmp_path / "base", BOTH, [])
    reference.save_pretrained(tmp_path / "adapter")
    load_adapter(tmp_path / "adapter", model)
    ids = IDS % 64
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=0, atol=1e-5)


def test_sixteen_bit_base_and_adapter_in_fp32(tmp_path: Path) -> None:
    model = _load(build_tiny("mixtral", tmp_path / "base"), torch.bfloat16)
    _trained(model, LoraConfig(rank=4))
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    for matrix in expert_matrices(model).values():
        assert matrix.lora_a.dtype == torch.float32
        assert matrix.lora_b.grad is not None
        assert matrix.lora_b.grad.abs().sum() > 0
        assert torch.isfinite(matrix.lora_a.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("family", some_quick(MIXTURES))
def test_the_estimate_counts_what_is_trained_and_written(family: str, tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    model = _load(base)
    table = module_table(model)
    assert sum(info.parameters for info in table) == sum(item.numel() for item in model.parameters())
    for adapter in (LoraConfig(rank=4), LoraConfig(rank=4, target_modules=("experts.down_proj",))):
        targets = select_targets(table, adapter)
        inject(model, adapter, seed=0)
        layers = [*lora_layers(model).values(), *expert_matrices(model).values()]
        assert trained_parameters(targets, adapter) == sum(
            layer.lora_a.numel() + layer.lora_b.numel() for layer in layers)
        assert adapter_shapes(targets, adapter) == {
            name: tuple(tensor.shape) for name, tensor in adapter_tensors(model).items()}
        assert module_table(model) == table  # an adapted model is listed as its base
        remove(model)


def test_experts_that_are_computed_otherwise_are_refused(tmp_path: Path) -> None:
    model = _load(build_tiny("mixtral", tmp_path / "base"))
    experts = model.get_submodule("model.layers.0.mlp.experts")
    forward = type(experts).forward

    class Doubled(type(experts)):  # type: ignore[misc]
        def forward(self, *args: Any) -> torch.Tensor:
            return 2 * forward(self, *args)

    experts.__class__ = Doubled
    with pytest.raises(AdapterError, match="not known here"):
        wrap_expert(model, "model.layers.0.mlp.experts.down_proj", 4, 8.0)
    assert not any(isinstance(module, ExpertsLayer) for module in model.modules())
    with pytest.raises(AdapterError, match="not known here"):
        inject(model, LoraConfig(), seed=0)
    assert not any(isinstance(module, ExpertsLayer) for module in model.modules())


def test_what_can_not_be_done_is_said(tmp_path: Path) -> None:
    model = _load(build_tiny("mixtral", tmp_path / "base"))
    with pytest.raises(AdapterError, match="Dropout"):
        inject(model, LoraConfig(dropout=0.1), seed=0)
    with pytest.raises(AdapterError, match="olora"):
        inject(model, LoraConfig(init="olora"), seed=0)
    with pytest.raises(AdapterError, match="holds the weights of experts"):
        inject(model, DoraConfig(target_modules=("down_proj",)), seed=0)
    kinds = {info.kind for info in select_targets(module_table(model), DoraConfig())}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj"}  # a preset leaves them out
    inject(model, LoraConfig(dropout=0.1, target_modules="attention"), seed=0)


@pytest.mark.parametrize(("change", "words"), [
    ("fewer names", "holds 2 updates of model.layers.0.mlp.experts, but its target_parameters name 1"),
    ("no names", "target_parameters name 0"), ("other rank", "says rank 3 for the experts"),
    ("half", "only half of model.layers.1.mlp.experts.base_layer"), ("fewer experts", "has 4 experts"),
])
def test_a_damaged_file_is_refused_by_name(change: str, words: str, tmp_path: Path) -> None:
    base = build_tiny("mixtral", tmp_path / "base")
    model = _load(base)
    adapter = LoraConfig(rank=4, target_modules=("gate_up_proj", "down_proj"))
    _trained(model, adapter)
    folder = tmp_path / "adapter"
    save_adapter(folder, model, adapter, str(base))
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.mlp.experts.base_layer.lora_A.weight"
    if change == "fewer names":
        config["target_parameters"] = ["experts.down_proj"]
    elif change == "no names":
        del config["target_parameters"]
    elif change == "other rank":
        config["r"] = 3
    elif change == "half":
        del tensors[key]
    else:
        for side in ("A", "B"):
            name = key.replace("lora_A", f"lora_{side}")
            tensors[name] = tensors[name][:12] if side == "A" else tensors[name][:, :12].contiguous()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    fresh = _load(base)
    with pytest.raises(AdapterError, match=words):
        load_adapter(folder, fresh)
    assert not any(isinstance(module, ExpertsLayer) for module in fresh.modules())


def test_every_expert_has_a_pair_of_its_own(tmp_path: Path) -> None:
    base = build_tiny("mixtral", tmp_path / "base")
    model = _load(base)
    adapter = LoraConfig(rank=4, target_modules=("gate_up_proj",))
    _trained(model, adapter)
    save_adapter(tmp_path / "adapter", model, adapter, str(base))
    pairs = read_adapter(tmp_path / "adapter").pairs
    assert len(pairs) == 2 * 4
    deltas = expert_matrices(model)["model.layers.1.mlp.experts.gate_up_proj"].delta()
    for number in range(4):
        torch.testing.assert_close(pairs[f"model.layers.1.mlp.experts.gate_up_proj.{number}"].delta(), deltas[number])


@pytest.mark.parametrize("family", some_quick(MIXTURES))
def test_training_goes_on_from_an_adapter(family: str, tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    model = _load(base)
    adapter = LoraConfig(rank=4, alpha=6.0)
    _trained(model, adapter)
    save_adapter(tmp_path / "adapter", model, adapter, str(base))
    file = read_adapter(tmp_path / "adapter")
    again = LoraConfig(**settings_from(file.config, list(file.pairs), file.origin),
                       start_from=str(tmp_path / "adapter"))
    fresh = _load(base)
    inject(fresh, again, seed=3)
    start_from(fresh, RunConfig(adapter=again), "")
    for name, matrix in expert_matrices(fresh).items():
        assert torch.equal(matrix.lora_a, expert_matrices(model)[name].lora_a)
        assert torch.equal(matrix.lora_b, expert_matrices(model)[name].lora_b)
    with torch.no_grad():
        torch.testing.assert_close(fresh(IDS).logits, model(IDS).logits, rtol=0, atol=0)
