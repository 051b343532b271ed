"""Counts are exact, problems have the right field."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save

from core.config import RunConfig, parse_config
from core.errors import AdapterError
from core.estimate import Estimate, estimate, largest_pass, measured, on_device
from core.events import DataScanned
from core.records import ModelCard, ModuleInfo
from core.run_problems import Problem, advice, planned_steps, problems


def module(name: str, layer: int, inputs: int, outputs: int) -> ModuleInfo:
    return ModuleInfo(name, name.rsplit(".", maxsplit=1)[-1], layer, "Linear", inputs, outputs, inputs * outputs)


def make_card(**changes: Any) -> ModelCard:
    modules = [module(f"model.layers.{layer}.self_attn.{kind}", layer, 64, width)
               for layer in range(12) for kind, width in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32))]
    values: dict[str, Any] = {
        "path": Path("m"), "name": "m", "model_type": "llama", "architecture": "L", "parameters": 1_000_000,
        "layers": 12, "hidden_size": 64, "intermediate_size": 128, "attention_heads": 4, "key_value_heads": 2,
        "vocabulary": 1000, "context_length": 256, "dtype": "bf16", "bytes_on_disk": 1, "has_chat_template": True,
        "tied_embeddings": True, "origin": "", "fingerprint": "", "modules": tuple(modules)}
    return ModelCard(**{**values, **changes})


def make_scan(**changes: Any) -> DataScanned:
    values: dict[str, Any] = {"files": (), "format": "chat", "rows": 100, "tokens": 5000, "supervised_tokens": 2000,
                              "rows_cut": 0, "rows_without_supervision": 0, "longest": 90, "length_counts": ()}
    return DataScanned(**{**values, **changes})


def config(**sections: dict[str, Any]) -> RunConfig:
    values = {"model": {"path": "m"}, "data": {"train": [__file__]}}
    return parse_config({**values, **sections})


@pytest.mark.parametrize("save_dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("rank", [1, 8, 33])
def test_parameters_and_file_size_are_exact(rank: int, save_dtype: str) -> None:
    import numpy as np

    card = make_card()
    found = estimate(config(adapter={"rank": rank, "target_modules": "q-v", "save_dtype": save_dtype}), card)
    assert found.trainable_parameters == rank * 12 * ((64 + 64) + (64 + 32))
    number = np.float32 if save_dtype == "fp32" else np.float16  # numpy has no bf16; the header is one letter longer
    tensors = {}
    for target in found.targets:
        tensors[f"base_model.model.{target.name}.lora_A.weight"] = np.zeros((rank, target.in_features), number)
        tensors[f"base_model.model.{target.name}.lora_B.weight"] = np.zeros((target.out_features, rank), number)
    real = len(save(tensors, {"format": "pt"}))
    assert abs(found.adapter_bytes - real) <= (len(tensors) + 8 if save_dtype == "bf16" else 0)


def test_memory_grows_with_what_costs_memory() -> None:
    card, scan = make_card(), make_scan(longest=200)

    def needs(**sections: dict[str, Any]) -> Estimate:
        return estimate(config(**sections), card, scan)

    base = needs()
    assert base.memory_bytes == sum(base.memory.values()) and base.memory["weights"] == 4_000_000
    assert needs(training={"dtype": "bf16"}).memory["weights"] == 2_000_000
    assert base.memory["adapter"] == 4 * base.trainable_parameters
    assert base.memory["optimizer"] == 2 * base.memory["adapter"]
    for part in ("adapter", "optimizer"):
        assert needs(adapter={"rank": 16}).memory[part] == 2 * base.memory[part]
    above = needs(adapter={"first_layer": 6}).memory["activations"]
    last_norm = 1024 * 4 * (64 + 1)
    assert 0 <= above - base.memory["activations"] / 2 <= last_norm  # but for what is there once
    assert needs(training={"batch_size": 1}).memory["activations"] < base.memory["activations"]
    assert needs(adapter={"dropout": 0.1}).memory["activations"] > base.memory["activations"]
    assert needs(training={"device": "cuda:0"}).memory["overhead"] > base.memory["overhead"]
    # 8 rows of 200 tokens are two passes, whose gradients are added up; one row is one
    assert base.memory["gradients"] == base.memory["adapter"]
    assert needs(training={"batch_size": 1}).memory["gradients"] == 0
    assert needs(training={"batch_size": 1, "gradient_accumulation": 2}).memory["gradients"] > 0
    with pytest.raises(AdapterError):
        needs(adapter={"target_modules": "nothing"})


def test_the_parts_are_those_of_the_moment_that_needs_most() -> None:
    card = make_card(parameters=50_000_000, layers=1, vocabulary=100_000, modules=(
        ModuleInfo("lm_head", "lm_head", -1, "Linear", 64, 100_000, 50_000_000, is_output_head=True,
                   tensors=(("weight", (100_000, 500)),)),))
    updating = estimate(config(adapter={"method": "full"}, training={"batch_size": 1}), card, make_scan(longest=8))
    assert updating.memory["activations"] == 0 and updating.memory["gradients"] == 200_000_000
    assert updating.memory["optimizer"] == 400_000_000  # two moments; the new weight is made in place
    assert updating.memory["weights"] == 200_000_000 and updating.memory["adapter"] == 0


def _equal(length: int) -> dict[str, Any]:
    return {"longest": length, "length_counts": (*(0,) * 39, 100)}


@pytest.mark.parametrize(("length", "scan", "device", "expected"), [
    (256, None, "cpu", 640), (2048, None, "cpu", 2048), (512, None, "cuda:0", 1024),
    (128, _equal(128), "cpu", 640), (256, _equal(256), "cpu", 512), (2048, _equal(512), "cpu", 512),
    (512, _equal(321), "cpu", 640), (1024, _equal(513), "cuda:0", 1024),  # the last token of a row is not computed
    (512, {"longest": 256, "length_counts": (*(0,) * 19, 15, *(0,) * 19, 85)}, "cpu", 640),
    (512, {"longest": 256, "length_counts": (*(0,) * 19, 5, *(0,) * 19, 95)}, "cpu", 512)])
def test_a_pass_is_filled_as_far_as_its_rows_allow(length: int, scan: dict[str, Any] | None, device: str,
                                                   expected: int) -> None:
    run = config(data={"train": [__file__], "max_length": length}, training={"batch_size": 8, "device": device})
    assert largest_pass(run, None if scan is None else make_scan(**scan)).tokens == expected


@pytest.mark.parametrize(("dtype", "adapter", "counts"), [
    ("fp32", {}, True), ("bf16", {}, False), ("bf16", {"method": "qlora"}, True), ("fp32", {"method": "qlora"}, True)])
def test_the_file_is_there_beside_the_weights_that_are_made_of_it(dtype: str, adapter: dict[str, Any],
                                                                 counts: bool) -> None:
    run = config(training={"dtype": dtype}, adapter=adapter)
    small, large = (estimate(run, make_card(bytes_on_disk=size)).memory for size in (1, 10**10))
    more = sum(large.values()) - sum(small.values())
    assert (more > 0.9 * 10**10) == counts
    assert {**large, "overhead": 0} == {**small, "overhead": 0}
    assert not counts or sum(large.values()) > 10**10 + large["weights"]


def test_quantised_bases_have_less_weight_and_their_library() -> None:
    card, scan = make_card(), make_scan()
    plain, packed = (estimate(config(adapter={"method": method}), card, scan).memory for method in ("lora", "qlora"))
    linear = sum(module.in_features * module.out_features for module in card.modules)
    assert 4 * linear * 0.85 < plain["weights"] - packed["weights"] < 4 * linear * 0.875
    assert packed["overhead"] > plain["overhead"]


def test_a_good_run_has_no_problem() -> None:
    assert problems(config(), make_card(), make_scan()) == []
    assert advice(config(), make_card(context_length=1024), make_scan()) == []


@pytest.mark.parametrize(("sections", "card", "scan", "field"), [
    ({"model": {"path": ""}}, {}, {}, "model.path"),
    ({"data": {"train": []}}, {}, {}, "data.train"),
    ({"data": {"train": ["/no/such/file.jsonl"]}}, {}, {}, "data.train"),
    ({"adapter": {"target_modules": ["no_proj"]}}, {}, {}, "adapter.target_modules"),
    ({"adapter": {"target_modules": "lm.*"}}, {}, {}, "adapter.target_modules"),
    ({"adapter": {"rank": 64}}, {}, {}, "adapter.rank"),
    ({"adapter": {"rank_pattern": {"v_proj": 64}}}, {}, {}, "adapter.rank_pattern"),
    ({"adapter": {"first_layer": 12}}, {}, {}, "adapter.first_layer"),
    ({"adapter": {"first_layer": 5, "last_layer": 4}}, {}, {}, "adapter.first_layer"),
    ({}, {}, {"rows": 0}, "data.train"),
    ({}, {}, {"supervised_tokens": 0}, "data.train"),
    ({}, {}, {"problems": ("a.jsonl, line 3: this is not valid JSON.",)}, "data.train"),
    ({}, {}, {"rows": 0, "problems": ("a.jsonl, line 1: this is not valid JSON.",)}, "data.train"),
    ({"data": {"train": [__file__], "validation_fraction": 0.5}}, {}, {"rows": 1}, None),
    ({}, {"model_type": "gpt2", "context_length": 64}, {}, "data.max_length"),
    ({}, {"model_type": "gpt2", "context_length": 96}, {}, None),
])
def test_problems_have_their_field(sections: dict[str, Any], card: dict[str, Any], scan: dict[str, Any],
                                   field: str | None) -> None:
    found = problems(config(**sections), make_card(**card), make_scan(**scan))
    assert [problem.field for problem in found] == ([field] if field else [])
    assert all(problem.message.endswith(".") for problem in found)


def test_without_card_and_scan_only_the_rest_is_checked() -> None:
    assert problems(RunConfig()) == [
        Problem("model.path", "No base model is chosen.", "Choose one on the Model page."),
        Problem("data.train", "No training data is chosen.", "Choose or drop a file on the Data page.")]


@pytest.mark.parametrize(("sections", "card", "field"), [
    ({"training": {"epochs": 1, "warmup_steps": 50}}, {}, "training.warmup_steps"),
    ({}, {"context_length": 256}, "data.max_length"),
])
def test_advice_keeps_nothing_from_starting(sections: dict[str, Any], card: dict[str, Any], field: str) -> None:
    made = make_card(**{"context_length": 1024, **card})
    assert field in [item.field for item in advice(config(**sections), made, make_scan())]
    assert problems(config(**sections), made, make_scan()) == []


def test_planned_steps_count_epochs_batches_and_the_limit() -> None:
    scan = make_scan()
    assert planned_steps(config(training={"epochs": 2, "batch_size": 10}), scan) == 20  # 95 rows
    assert planned_steps(config(training={"epochs": 2, "batch_size": 10, "gradient_accumulation": 2}), scan) == 10
    assert planned_steps(config(training={"epochs": 2, "batch_size": 10, "max_steps": 7}), scan) == 7


def test_a_measurement_corrects_the_overhead_first() -> None:
    found = estimate(config(), make_card(), make_scan())
    more = measured(found, 1_000_000)
    assert more.memory_bytes == found.memory_bytes + 1_000_000
    assert more.memory["overhead"] == found.memory["overhead"] + 1_000_000
    less = measured(found, -(found.memory["overhead"] + 1000))
    assert less.memory["overhead"] == 0 and less.memory["activations"] == found.memory["activations"] - 1000
    assert len(less.assumptions) == len(found.assumptions) + 1


@pytest.mark.parametrize(("named", "devices", "expected"), [
    ("auto", ["cuda:0", "cpu"], "cuda:0"), ("all", ["cuda:0", "cuda:1", "cpu"], "cuda:0"), ("cuda", [], "cuda:0"),
    ("auto", ["cpu"], "cpu"), ("auto", [], "auto"), ("cpu", ["cuda:0", "cpu"], "cpu"), ("cuda:1", ["cpu"], "cuda:1")])
def test_the_device_that_a_run_takes(named: str, devices: list[str], expected: str) -> None:
    config = parse_config({"training": {"device": named}})
    assert on_device(config, devices).training.device == expected
