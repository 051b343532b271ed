"""Fused gates and norms compute what the single operations compute, in every family, and keep less."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import FAMILIES, MIXTURES, build_tiny, some_quick
from torch import Tensor, nn
from transformers.activations import ACT2FN

from bench.draining import finish
from core.config import LoraConfig, parse_config
from core.control import Control
from core.events import Note
from core.lora.inject import inject
from core.lora.method import train_mode
from core.models.load import load_model
from core.training import setup as setup_room
from core.training.fused_elementwise import Fused, fuse_elementwise, gated, rms_norm
from core.training.segments import segmented_attention
from core.training.setup import prepare

CPU = torch.device("cpu")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _gradients(result: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(result, inputs, randn(*result.shape, seed=9).to(result.dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh", "relu", "linear", "relu2"])
def test_a_gate_is_the_same_to_the_bit(name: str, dtype: torch.dtype) -> None:
    act: Callable[[Tensor], Tensor] = ACT2FN[name]
    inputs = [randn(2, 33, 40, seed=seed).to(dtype).requires_grad_() for seed in range(2)]
    before = [each.detach().clone() for each in inputs]
    expected, found = act(inputs[0]) * inputs[1], gated(*inputs, act)
    assert torch.equal(found, expected)
    for mine, reference in zip(_gradients(found, inputs), _gradients(expected, inputs), strict=True):
        assert mine.dtype == dtype and torch.equal(mine, reference)
    assert all(map(torch.equal, inputs, before))


@pytest.mark.parametrize("shape", [(1, 64), (3, 50, 64), (2, 5, 4, 16)])
def test_a_norm_is_that_of_torch(shape: tuple[int, ...]) -> None:
    x, factor = randn(*shape).mul_(3).requires_grad_(), randn(shape[-1], seed=1)
    expected = F.rms_norm(x.double(), shape[-1:], factor.double(), 1e-5)
    found = rms_norm(x, factor, 1e-5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(_gradients(found, [x])[0], _gradients(expected, [x])[0], rtol=2e-6, atol=2e-6)


def test_a_norm_of_nothing_but_zeros_is_finite() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    found = rms_norm(x, torch.ones(8), 1e-6)
    assert torch.equal(found, x) and bool(_gradients(found, [x])[0].isfinite().all())


def _adapted(folder: Path, dtype: torch.dtype, fused: bool) -> nn.Module:
    model = load_model(folder, CPU, dtype)
    if fused:
        assert fuse_elementwise(model) == fuse_elementwise(load_model(folder, CPU, dtype))  # the same each time
    for layer in inject(model, LoraConfig(rank=2, target_modules="all-linear"), seed=0).values():
        nn.init.normal_(layer.lora_b, std=0.05, generator=torch.Generator().manual_seed(3))
    return model


@pytest.mark.parametrize("family", some_quick(FAMILIES + MIXTURES))
def test_every_family_trains_alike(family: str, tmp_path: Path) -> None:
    folder = build_tiny(family, tmp_path / family)
    ids = torch.arange(2 * 24).view(2, 24) % 300 + 5
    results = []
    for fused in (False, True):
        model = _adapted(folder, torch.float32, fused)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        trained = [each for each in model.parameters() if each.requires_grad]
        results.append([loss, *torch.autograd.grad(loss, trained)])
    for mine, reference in zip(*reversed(results), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sections", [
    {"adapter": {"target_modules": "all-linear", "modules_to_save": ["norm"]}},
    {"adapter": {"method": "dora", "target_modules": "all-linear"}},
    {"adapter": {"method": "qlora", "target_modules": "all-linear"}},
    {"adapter": {"target_modules": "all-linear"}, "training": {"activation_checkpointing": "on"}},
    {"adapter": {"target_modules": "q-v"}, "bottleneck": {"size": 4}},
    {"adapter": {"method": "full"}},
], ids=json.dumps)
def test_every_method_trains_alike(sections: dict[str, Any], tiny_model: Path, data: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"model": {"path": str(tiny_model)}, "data": {"train": [str(data)], "validation_fraction": 0.0}}
    results = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(setup_room, "fuse_elementwise", lambda model: Fused(0, {}))
        setup = finish(prepare(parse_config({**plain, **sections}), Control()))
        train_mode(setup.model)
        batch, = setup.batches(list(setup.train[:3]))
        trained = setup.adaptation.parameters(setup.model)
        with segmented_attention(setup.model):
            loss = setup.summed_loss(setup.model, batch)
            results.append([loss, *torch.autograd.grad(loss, list(trained.values()), allow_unused=True)])
    assert len(results[0]) == len(results[1]) > 1
    for mine, reference in zip(*results, strict=True):
        if reference is None:
            assert mine is None
            continue
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "norms", "gates"), [
    ("llama", 7, 3), ("gemma3", None, 1), ("phi3", None, 2), ("gpt2", 0, 0)])
def test_what_is_fused(family: str, norms: int | None, gates: int, tmp_path: Path) -> None:
    model = load_model(build_tiny(family, tmp_path / family), CPU, torch.float32)
    count = fuse_elementwise(model).modules
    found = {name: module for name, module in model.named_modules() if "forward" in vars(module)}
    assert len(found) == count
    assert sum(name.endswith("mlp") for name in found) >= gates
    real = [name for name, module in model.named_modules() if type(module).__name__.endswith("RMSNorm")]
    assert sum(name in found for name in real) == len(real) == (len(real) if norms is None else norms)


def test_a_base_in_16_bits_has_its_norms_as_they_were(tiny_model: Path) -> None:
    ids = torch.arange(20)[None] + 5
    outputs = []
    for fused in (False, True):
        model = load_model(tiny_model, CPU, torch.bfloat16)
        if fused:
            assert fuse_elementwise(model).modules
        outputs.append(model(input_ids=ids).logits)
    assert torch.equal(*outputs)


class _Scaled(nn.Module):
    """Has the parts of a gated MLP; whether it is a plain one is a matter of its settings."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * self.factor


class _Halved(_Scaled):
    """Computes something else."""

    def __init__(self) -> None:
        super().__init__(0.5)


class _Bounded(_Scaled):
    """Bounds that small numbers never reach."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (part(x).clamp(-10, 10) for part in (self.gate_proj, self.up_proj))
        return self.down_proj(self.act_fn(gate) * up)


class _EpsOutsideRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps) * self.weight


class _CenteredRMSNorm(nn.Module):
    """Called so, and takes the mean off."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (8,), self.weight, None, self.eps)


class _TwoInputs(_Scaled):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return super().forward(x) + other


@pytest.mark.parametrize("kind", [_Halved, _CenteredRMSNorm, _TwoInputs, _Bounded, _EpsOutsideRMSNorm])
def test_another_kind_stays_as_it_is(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind(), kind()).requires_grad_(False)
    assert fuse_elementwise(model) == Fused(0, {kind.__name__: (2, 2)})
    assert not any("forward" in vars(module) for module in model)


def test_modules_of_other_settings_are_asked_themselves() -> None:
    model = nn.Sequential(_Scaled(1.0), _Scaled(0.5), _Scaled(1.0)).requires_grad_(False)
    assert fuse_elementwise(model) == Fused(2, {"_Scaled": (1, 3)})
    assert ["forward" in vars(module) for module in model] == [True, False, True]


def test_a_run_tells_what_stays_as_it_is(tiny_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_room, "fuse_elementwise", lambda model: Fused(5, {"OddMLP": (2, 4), "OddNorm": (3, 3)}))
    config = parse_config({"model": {"path": str(tiny_model)}, "data": {"train": [str(data)]}})
    notes = [event.message for event in prepare(config, Control()) if isinstance(event, Note)]
    assert ("2 of 4 OddMLP and 3 of 3 OddNorm are computed in single operations: "
            "one could not be shown to give the same.") in notes


def test_an_activation_that_learns_is_left_alone() -> None:
    model = _Scaled()
    model.act_fn = nn.PReLU()
    assert fuse_elementwise(nn.Sequential(model).requires_grad_(False)) == Fused(0, {})


@pytest.mark.parametrize("learns", [0, 1])
def test_only_what_learns_has_a_gradient(learns: int) -> None:
    inputs = [randn(6, 8, seed=seed) for seed in range(2)]
    inputs[learns].requires_grad_()
    expected = _gradients(F.silu(inputs[0]) * inputs[1], [inputs[learns]])
    assert torch.equal(_gradients(gated(*inputs, F.silu), [inputs[learns]])[0], expected[0])


def test_a_norm_whose_weight_is_trained_has_its_gradient(tiny_model: Path) -> None:
    ids = torch.arange(20)[None] + 5
    gradients = []
    for fused in (False, True):
        model = load_model(tiny_model, CPU, torch.float32)
        if fused:
            fuse_elementwise(model)
        weight = model.get_submodule("model.norm").weight.requires_grad_()
        loss = model(input_ids=ids, labels=ids).loss
        gradients.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert gradients[1].abs().max() > 0


def test_no_random_number_is_drawn(tiny_model: Path) -> None:
    model = load_model(tiny_model, CPU, torch.float32)
    before = torch.get_rng_state()
    fuse_elementwise(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gate_keeps_only_what_it_takes() -> None:
    kept = []
    inputs = [randn(30, 8, seed=seed).requires_grad_() for seed in range(2)]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda _: inputs[0]):
        gated(*inputs, F.silu)
    assert set(kept) == {each.data_ptr() for each in inputs}


def test_a_model_that_is_let_go_is_gone(tiny_model: Path) -> None:
    model = load_model(tiny_model, CPU, torch.float32)
    fuse_elementwise(model)
    there = weakref.ref(model.get_submodule("model.layers.0.mlp"))
    gc.collect()
    gc.disable()
    try:
        del model
        assert there() is None
    finally:
        gc.enable()
