"""AdaLoRA against PEFT's: the same ranks at the same steps, the same weights, the same file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build_tiny, some_quick
from torch import Tensor
from transformers import AutoModelForCausalLM

from core.config import AdaLoraConfig
from core.errors import AdapterError
from core.events import RanksChosen
from core.export.inspect_adapter import describe
from core.lora.adalora import AdaLora
from core.lora.adapter_file import read_adapter
from core.lora.attach import load_adapter
from core.lora.beside import Beside
from core.lora.inject import lora_layers, remove
from core.lora.method import Material
from core.models.load import load_model

TOTAL = 40
ADAPTER = AdaLoraConfig(rank=2, alpha=16.0, initial_rank=5, budget_start=0.1, budget_end=0.7, budget_every=3,
                        target_modules="all-linear")
IDS = torch.arange(20, 60)[None]
PARTS = {"lora_a": "lora_A", "lora_e": "lora_E", "lora_b": "lora_B"}


def _load(folder: Path) -> Any:
    return load_model(folder, torch.device("cpu"), torch.float32)


def _ours(folder: Path, adapter: AdaLoraConfig = ADAPTER) -> tuple[Any, AdaLora]:
    model, method = _load(folder), AdaLora(adapter)
    method.install(model, Material((), seed=3))
    return model, method


def _peft(folder: Path, model: Any, adapter: AdaLoraConfig = ADAPTER) -> Any:
    """PEFT's AdaLoRA with the numbers of ours."""
    from peft import AdaLoraConfig as PeftConfig
    from peft import get_peft_model

    start, end = adapter.pruning_steps(TOTAL)
    layers = lora_layers(model)
    config = PeftConfig(
        init_r=adapter.first_rank, target_r=adapter.rank, tinit=start, tfinal=TOTAL - end,
        deltaT=adapter.budget_every, beta1=adapter.sensitivity_beta, beta2=adapter.uncertainty_beta,
        orth_reg_weight=adapter.orthogonality, total_step=TOTAL, lora_alpha=int(adapter.alpha),
        target_modules=list(layers), task_type="CAUSAL_LM")
    reference = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config).eval()
    with torch.no_grad():
        for name, layer in layers.items():
            for ours, theirs in PARTS.items():
                _theirs(reference, name, theirs).copy_(getattr(layer, ours))
    return reference


def _theirs(reference: Any, name: str, part: str) -> Tensor:
    return getattr(reference.base_model.model.get_submodule(name), part)["default"]


def _step(model: Any, optimizer: torch.optim.Optimizer, step: int, penalty: Any = None) -> float:
    ids = torch.randint(3, 380, (2, 24), generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    if penalty is not None:
        loss = loss + penalty()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _train(model: Any, method: AdaLora, steps: int) -> list[RanksChosen]:
    told = list(method.begin(model, 0, TOTAL))
    optimizer = torch.optim.AdamW([{"params": list(group.parameters.values())} for group in method.groups(model)],
                                  lr=5e-3, weight_decay=0.0)
    for step in range(1, steps + 1):
        _step(model, optimizer, step, lambda: method.penalty(model))
        told += list(method.after_step(model, step, TOTAL))
    return told  # type: ignore[return-value]


@pytest.mark.parametrize("family", some_quick(["llama", "gpt2"], ["llama"]))
def test_a_whole_run_keeps_the_ranks_that_peft_keeps(family: str, tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    model, method = _ours(base)
    reference = _peft(base, model)
    told = list(method.begin(model, 0, TOTAL))
    ours = torch.optim.AdamW([{"params": list(group.parameters.values())} for group in method.groups(model)],
                             lr=5e-3, weight_decay=0.0)
    theirs = torch.optim.AdamW([p for p in reference.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
    chosen_at = []
    for step in range(1, TOTAL + 1):
        losses = (_step(model, ours, step, lambda: method.penalty(model)), _step(reference, theirs, step))
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        before = reference.base_model.peft_config["default"].rank_pattern
        told += method.after_step(model, step, TOTAL)
        reference.base_model.update_and_allocate(step)
        pattern = reference.base_model.peft_config["default"].rank_pattern
        if pattern is not before:
            chosen_at.append(step)
            for name in lora_layers(model):
                assert method._kept[name].tolist() == pattern[f"{name}.lora_E.default"], (step, name)
        for name, layer in lora_layers(model).items():
            for part, peft_part in PARTS.items():
                torch.testing.assert_close(getattr(layer, part), _theirs(reference, name, peft_part),
                                           rtol=0, atol=1e-5 if step <= 10 else 1e-4)
    assert chosen_at == [6, 9, 12, 15, 18, 21, 24, 27, 28]
    final = told[-1]
    assert isinstance(final, RanksChosen) and final.step == 28
    assert sum(final.ranks.values()) == final.budget == 2 * len(final.ranks)
    assert len(set(final.ranks.values())) > 1  # it chose
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, rtol=0, atol=1e-3)


def test_the_gradients_of_one_step_are_peft_s(tiny_model: Path) -> None:
    model, method = _ours(tiny_model)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_e.normal_(generator=torch.Generator().manual_seed(1))  # type: ignore[operator]
    reference = _peft(tiny_model, model).double()  # fp32 would compare roundings
    model.double()
    ids = torch.randint(3, 380, (2, 24), generator=torch.Generator().manual_seed(0))
    penalty = method.penalty(model)
    assert penalty is not None
    (model(input_ids=ids, labels=ids).loss + penalty).backward()
    reference(input_ids=ids, labels=ids).loss.backward()
    for name, layer in lora_layers(model).items():
        for part, peft_part in PARTS.items():
            ours, theirs = getattr(layer, part).grad, _theirs(reference, name, peft_part).grad
            assert theirs is not None
            assert float((ours - theirs).norm() / theirs.norm()) < 1e-6, (name, part)


def _write(folder: Path, model: Any, method: AdaLora, dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir()
    method.write(folder, model, dtype, "base", {})
    return folder


LOWEST = ADAPTER.model_copy(update={"rank": 1, "initial_rank": 4})


@pytest.mark.parametrize(("family", "adapter", "steps"), [
    ("llama", LOWEST, TOTAL), ("gpt2", LOWEST, TOTAL), ("phi3", ADAPTER, TOTAL),
    ("llama", ADAPTER, 4), ("llama", ADAPTER, 17),  # before the first choice, and between two of them
], ids=["llama", "gpt2", "phi3", "not pruned yet", "while ranks grow again"])
def test_peft_reads_ours_and_the_folded_pairs_are_the_layers(family: str, adapter: AdaLoraConfig, steps: int,
                                                             tmp_path: Path) -> None:
    from peft import PeftModel

    base = build_tiny(family, tmp_path / "base")
    model, method = _ours(base, adapter)
    told = _train(model, method, steps)
    if adapter is LOWEST:
        assert 0 in told[-1].ranks.values()
    folder = _write(tmp_path / "adapter", model, method)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
                                          folder).eval()
    with torch.no_grad():
        expected = model(IDS).logits
        torch.testing.assert_close(reference(IDS).logits, expected, rtol=0, atol=1e-5)
        for name, pair in read_adapter(folder).pairs.items():
            layer = lora_layers(model)[name]
            torch.testing.assert_close(pair.delta(), layer.delta(), rtol=0, atol=1e-6)
            assert (torch.linalg.matrix_rank(pair.delta()) if pair.delta().any() else 0) <= pair.lora_a.shape[0]
        remove(model)
        load_adapter(folder, model)
        torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-5)


def test_sixteen_bits_are_multiplied_as_peft_does(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model, method = _ours(tiny_model)
    _train(model, method, TOTAL)
    folder = _write(tmp_path / "adapter", model, method, torch.bfloat16)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
                                          folder).eval()
    adapter, numbers = read_adapter(folder), load_file(folder / "adapter_model.safetensors")
    for name, pair in adapter.pairs.items():
        theirs = reference.get_submodule(f"base_model.model.{name}").get_delta_weight("default")
        torch.testing.assert_close(pair.delta(), theirs, rtol=1e-5, atol=1e-7)
    card = describe(adapter)
    assert (card.dtype, card.parameters) == ("bf16", sum(tensor.numel() for tensor in numbers.values()))


def test_biases_and_whole_modules_stand_in_the_same_file(tmp_path: Path) -> None:
    from peft import PeftModel

    base = build_tiny("gpt2", tmp_path / "base")
    adapter = LOWEST.model_copy(update={"bias": "all", "modules_to_save": ("ln_f",)})
    model, method = _ours(base, adapter)
    beside = Beside(adapter)
    beside.install(model, Material((), seed=3))
    _train(model, method, TOTAL)
    with torch.no_grad():
        for group in beside.groups(model):
            for parameter in group.parameters.values():
                parameter.add_(0.1)
    folder = _write(tmp_path / "adapter", model, method)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
                                          folder).eval()
    again = _load(base)
    load_adapter(folder, again)
    with torch.no_grad():
        expected = model(IDS).logits
        torch.testing.assert_close(reference(IDS).logits, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(again(IDS).logits, expected, rtol=0, atol=1e-5)


def test_what_is_no_linear_layer_is_refused(tiny_model: Path) -> None:
    for target in (("embed_tokens",), ("q_proj", "embed_tokens")):
        with pytest.raises(AdapterError, match="embed_tokens"):
            _ours(tiny_model, ADAPTER.model_copy(update={"target_modules": target}))


def test_a_triplet_that_grew_again_is_in_the_file(tiny_model: Path, tmp_path: Path) -> None:
    model, method = _ours(tiny_model)
    _train(model, method, 17)  # chosen last at step 15
    pairs = read_adapter(_write(tmp_path / "adapter", model, method)).pairs
    assert sum(pair.lora_a.shape[0] for pair in pairs.values()) > sum(int(kept.sum()) for kept in method._kept.values())


@pytest.mark.parametrize("steps", [3, TOTAL])
def test_ours_reads_peft(steps: int, tiny_model: Path, tmp_path: Path) -> None:
    start, _ = _ours(tiny_model)
    reference = _peft(tiny_model, start)
    optimizer = torch.optim.AdamW([p for p in reference.parameters() if p.requires_grad], lr=5e-3)
    for step in range(1, steps + 1):
        _step(reference, optimizer, step)
        reference.base_model.update_and_allocate(step)
    reference.save_pretrained(tmp_path / "adapter")
    model = _load(tiny_model)
    load_adapter(tmp_path / "adapter", model)
    saved = type(reference).from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, saved(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.full
def test_nothing_is_pruned_where_the_first_rank_is_the_target(tiny_model: Path) -> None:
    model, method = _ours(tiny_model, ADAPTER.model_copy(update={"initial_rank": 2}))
    told = _train(model, method, TOTAL)
    assert {rank for event in told for rank in event.ranks.values()} == {2}


def test_the_budget_falls_by_the_cube_and_is_settled_at_its_end(tiny_model: Path) -> None:
    model, method = _ours(tiny_model)
    layers = len(lora_layers(model))
    budgets = [method.budget(model, step, TOTAL) for step in range(1, TOTAL + 1)]
    assert budgets[3] == 5 * layers > budgets[4] and budgets[27:] == [2 * layers] * 13
    assert budgets[15] == int(3 * layers * 0.5 ** 3 + 2 * layers)  # half of the way
    assert budgets == sorted(budgets, reverse=True)
    assert [step for step in (27, 28, TOTAL) if method.is_settled(step, TOTAL)] == [28, TOTAL]


def test_a_step_without_a_finite_gradient_weighs_nothing(tiny_model: Path) -> None:
    model, method = _ours(tiny_model)
    _train(model, method, 3)
    before = {name: tensor.clone() for name, tensor in method.state().items()}
    for parameter in method.groups(model)[0].parameters.values():
        assert parameter.grad is not None
        parameter.grad[0] = math.nan
        break
    assert list(method.after_step(model, 4, TOTAL)) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state().items())


@pytest.mark.parametrize(("steps", "start", "end"), [(1, 0.1, 0.7), (10, 0.5, 0.52)])
def test_too_few_steps_are_refused_before_the_first(tiny_model: Path, steps: int, start: float, end: float) -> None:
    model, method = _ours(tiny_model, ADAPTER.model_copy(update={"budget_start": start, "budget_end": end}))
    with pytest.raises(AdapterError, match="leaves none in which the ranks could be chosen"):
        list(method.begin(model, 0, steps))


def test_damage_is_named(tiny_model: Path, tmp_path: Path) -> None:
    model, method = _ours(tiny_model)
    _train(model, method, TOTAL)
    folder = _write(tmp_path / "adapter", model, method)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    good, fields = load_file(weights), json.loads(config.read_text())
    module = "model.layers.1.mlp.up_proj"
    key = f"base_model.model.{module}.lora_E"
    pattern = fields["rank_pattern"]
    cases = {
        "only a part of model.layers.1.mlp.up_proj": ({n: t for n, t in good.items() if n != key}, fields),
        "not finite in": (good | {key: torch.full_like(good[key], math.nan)}, fields),
        "says rank": (good | {key: torch.zeros(7, 1)}, fields),
        "lora_alpha = None": (good, fields | {"lora_alpha": None}),
        "init_r = 0": (good, fields | {"init_r": 0}),
        "not a list of 5": (good, fields | {"rank_pattern": pattern | {f"{module}.lora_E": [1, 0, 1, 1, 0]}}),
        "holds nothing": (good, fields | {"rank_pattern": pattern | {"model.layers.9.lora_E": [True] * 5}}),
        "not an AdaLoRA matrix": (good | {f"base_model.model.{module}.lora_F": torch.zeros(1)}, fields),
    }
    for words, (tensors, values) in cases.items():
        save_file(tensors, weights)
        config.write_text(json.dumps(values))
        with pytest.raises(AdapterError, match=words):
            read_adapter(folder)
