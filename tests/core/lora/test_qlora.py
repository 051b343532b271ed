"""QLoRA against PEFT on the same quantised base: logits, gradients, steps, files."""

from pathlib import Path

import pytest
import torch
from tiny_models import build_tiny, some_quick
from transformers import AutoModelForCausalLM

from core.config import QLoraConfig, RunConfig, TrainingConfig
from core.errors import ModelError
from core.lora.adapter_file import save_adapter
from core.lora.attach import load_adapter
from core.lora.inject import inject, lora_layers
from core.lora.qlora import QLoraLayer
from core.models.inspect import read_card
from core.models.load import load_model
from core.models.quantise import loading_config, quantisation_of
from core.run_problems import problems

pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")
CPU = torch.device("cpu")
IDS = torch.arange(3, 60).reshape(3, 19)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("bases")
    return lambda family: root / family if (root / family).exists() else build_tiny(family, root / family)


def _ours(base: Path, adapter: QLoraConfig):
    model = load_model(base, CPU, torch.float32, quantisation_of(adapter, torch.float32))
    inject(model, adapter, 0, QLoraLayer)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        layer.lora_b.data.normal_(0, 0.05, generator=generator)
    return model


def _theirs(base: Path, adapter: QLoraConfig, folder: Path):
    quantisation = quantisation_of(adapter, torch.float32)
    assert quantisation is not None
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, device_map={"": "cpu"},
                                                 quantization_config=loading_config(quantisation))
    # in training mode bitsandbytes computes int8 on dequantised weights, as we always do
    return peft.PeftModel.from_pretrained(model, folder, is_trainable=True).train()


def _loss(model) -> torch.Tensor:
    logits = model(input_ids=IDS, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


@pytest.mark.parametrize("family", some_quick(["llama", "gpt2", "phi3"], ["gpt2"]))  # see exactness for Llama
@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("nf4", False), ("int8", False)])
def test_logits_gradients_and_ten_steps_are_those_of_peft(base, tmp_path: Path, family: str, kind: str,
                                                          double: bool) -> None:
    adapter = QLoraConfig(rank=4, quantisation=kind, double_quantisation=double)  # type: ignore[arg-type]
    ours = _ours(base(family), adapter)
    save_adapter(tmp_path / "adapter", ours, adapter, str(base(family)))
    theirs = _theirs(base(family), adapter, tmp_path / "adapter")
    with torch.no_grad():
        difference = ours(input_ids=IDS, use_cache=False).logits - theirs(input_ids=IDS, use_cache=False).logits
    assert float(difference.abs().max()) < 1e-5
    mine = {f"{name}.{part}": parameter for name, layer in lora_layers(ours).items()
            for part, parameter in (("lora_A", layer.lora_a), ("lora_B", layer.lora_b))}
    other = {name.removeprefix("base_model.model.").removesuffix(".default.weight"): parameter
             for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert mine.keys() == other.keys()
    optimizers = [torch.optim.AdamW(items.values(), lr=1e-3, weight_decay=0.0) for items in (mine, other)]
    for step in range(10):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            _loss(model).backward()
        if step == 0:
            for name, parameter in mine.items():
                error = float((parameter.grad - other[name].grad).norm() / other[name].grad.norm())
                assert error < 1e-6, name
        for optimizer in optimizers:
            optimizer.step()
    for name, parameter in mine.items():
        # a step moves a weight by 1e-3 whatever its gradient, so signs of tiny gradients may differ
        assert float((parameter - other[name]).detach().abs().mean()) < 1e-5, name


def test_the_file_goes_back_onto_a_quantised_base(base, tmp_path: Path) -> None:
    adapter = QLoraConfig(rank=4)
    ours = _ours(base("llama"), adapter)
    save_adapter(tmp_path / "adapter", ours, adapter, str(base("llama")))
    again = load_model(base("llama"), CPU, torch.float32, quantisation_of(adapter, torch.float32))
    load_adapter(tmp_path / "adapter", again)
    with torch.no_grad():
        assert torch.allclose(again(input_ids=IDS).logits, ours(input_ids=IDS).logits, atol=1e-6)


def test_the_fused_product_gives_the_gradients_of_the_plain_one(base) -> None:
    layer = next(iter(lora_layers(_ours(base("llama"), QLoraConfig(rank=4))).values()))
    assert isinstance(layer, QLoraLayer)
    found = []
    for plain in (False, True):
        x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
        layer.zero_grad()
        result = layer._plain_forward(x, False) if plain else layer(x)
        result.square().sum().backward()
        assert layer.lora_a.grad is not None and layer.lora_b.grad is not None and x.grad is not None
        found.append((result.detach(), x.grad, layer.lora_a.grad.clone(), layer.lora_b.grad.clone()))
    for fused, plain in zip(*found, strict=True):
        assert torch.allclose(fused, plain, rtol=1e-4, atol=1e-4)


def test_what_needs_cuda_is_refused_where_the_run_would_take_another_device() -> None:
    for optimizer in ("adamw-8bit", "paged-adamw"):
        for device in ("auto", "all"):
            config = RunConfig(adapter=QLoraConfig(optimizer=optimizer), training=TrainingConfig(device=device))  # type: ignore[arg-type]
            for devices, told in (((), False), (("cpu",), True), (("mps", "cpu"), True), (("cuda:0", "cpu"), False)):
                found = [each.field for each in problems(config, devices=devices)]
                assert ("adapter.optimizer" in found) == told


def test_a_kind_of_model_that_would_stay_as_it_is_is_refused(base) -> None:
    config = RunConfig(adapter=QLoraConfig(rank=4))
    assert "adapter.method" in [each.field for each in problems(config, read_card(base("falcon")))]
    assert "adapter.method" not in [each.field for each in problems(config, read_card(base("llama")))]
    with pytest.raises(ModelError, match="can not be held in 4 or 8 bits"):
        _ours(base("falcon"), QLoraConfig(rank=4))
