"""A base in 4 or 8 bits: what is quantised, what it becomes, and what it takes."""

import math
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, build_tiny, some_quick

from core.base_memory import weight_bytes
from core.config import QLoraConfig
from core.errors import AdapterError, ModelError
from core.export.keys import skeleton
from core.models import quantise
from core.models.inspect import read_card
from core.models.load import load_model
from core.models.quantise import Quantisation, QuantisedLinear, quantisation_in, quantised_names, rounded_by

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
KINDS = [Quantisation("nf4", True), Quantisation("nf4", False), Quantisation("int8", False),
         Quantisation("nf4", True, torch.bfloat16)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("bases")
    return lambda family: root / family if (root / family).exists() else build_tiny(family, root / family)


def _layers(model) -> dict[str, QuantisedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_the_model_computes_with_the_weights_that_one_tensor_alone_gives(base, family: str) -> None:
    ids = torch.arange(3, 40)[None]
    for kind in (KINDS[0], KINDS[2]):
        model = load_model(base(family), CPU, torch.float32, kind)
        plain = load_model(base(family), CPU, torch.float32)
        layers = _layers(model)
        assert list(layers) == quantised_names(skeleton(base(family)))
        for name, layer in layers.items():
            own = plain.get_submodule(name).weight
            own.data = rounded_by(own, kind, layer.from_conv1d)
        assert torch.equal(model(ids, use_cache=False).logits, plain(ids, use_cache=False).logits)


def test_the_head_and_the_embedding_stay_as_they_are(base) -> None:
    model = load_model(base("qwen3"), CPU, torch.float32, KINDS[0])
    assert type(model.lm_head) is torch.nn.Linear
    assert len(_layers(model)) == 2 * 7


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_input_through_the_dequantised_weight(base, kind: Quantisation) -> None:
    layer = next(iter(_layers(load_model(base("llama"), CPU, kind.computed_in, kind)).values()))
    x = torch.randn(5, layer.in_features, dtype=kind.computed_in, requires_grad=True)
    slope = torch.randn(5, layer.out_features, dtype=kind.computed_in)
    layer(x).backward(slope)
    assert torch.equal(x.grad, slope @ layer.dequantised())
    assert layer.weight.dtype in (torch.uint8, torch.int8)
    assert not layer.weight.requires_grad


def test_evaluating_between_steps_changes_no_gradient(base) -> None:
    layer = next(iter(_layers(load_model(base("llama"), CPU, torch.float32, KINDS[0])).values()))
    x = torch.randn(1, layer.in_features, requires_grad=True)
    layer(x).sum().backward()
    before = x.grad.clone()
    with torch.no_grad():  # bitsandbytes itself repacks weights here on some processors
        layer.eval()(x)
    x.grad = None
    layer(x).sum().backward()
    assert torch.equal(x.grad, before)


def test_nf4_is_close_and_int8_closer() -> None:
    weight = torch.randn(64, 128) * 0.02
    nf4, int8 = (float((rounded_by(weight, kind) - weight).norm() / weight.norm()) for kind in (KINDS[0], KINDS[2]))
    assert 0.05 < nf4 < 0.12
    assert int8 < 0.01


@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("nf4", False), ("int8", False)])
def test_the_estimate_counts_the_bytes_that_are_held(base, kind: str, double: bool) -> None:
    model = load_model(base("llama"), CPU, torch.float32, Quantisation(kind, double))  # type: ignore[arg-type]
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    for layer in _layers(model).values():
        state = layer.quant_state
        scales = [layer.scales] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]
        held += sum(math.prod(item.shape) * item.element_size() for item in scales)
    adapter = QLoraConfig(quantisation=kind, double_quantisation=double)  # type: ignore[arg-type]
    assert weight_bytes(read_card(base("llama")), adapter, "fp32") == held


def test_without_the_package_it_is_said_plainly(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="needs the package bitsandbytes") as caught:
        load_model(tiny_model, CPU, torch.float32, KINDS[0])
    assert "pip install bitsandbytes" in caught.value.hint
    load_model(tiny_model, CPU, torch.float32)  # which all else can do without


def test_how_it_was_held_survives_the_file() -> None:
    for kind in KINDS:
        assert quantisation_in({quantise.ORIGIN_KEY: kind.to_plain()}) == kind
    assert quantisation_in({}) is None
    for wrong in ({"kind": "int3", "double": False, "computed_in": "fp32"}, {"kind": "nf4"}, "nf4"):
        with pytest.raises(AdapterError, match="how its base was quantised"):
            quantisation_in({quantise.ORIGIN_KEY: wrong})
