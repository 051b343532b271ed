"""What the rows of a step begin with is computed once, and nothing changes by it."""

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FAMILIES, MIXTURES, build_tiny, some_quick

from core.config import RunConfig, parse_config
from core.control import Control
from core.data.batching import Batch, pack, pad
from core.data.template import EncodedRow
from core.estimate import PACK_TOKENS
from core.events import Evaluated, Event, Note, Result, StepDone
from core.jobs import Resume, Train
from core.lora.adalora import AdaLoraLayer
from core.lora.adaptation import Adaptation
from core.lora.inject import lora_layers
from core.lora.method import Material, train_mode
from core.models.load import load_model, load_tokenizer
from core.models.quantise import quantisation_of
from core.training.computing_path import choose_path
from core.training.loop import resume, train
from core.training.loss import chunked_loss, direct_loss
from core.training.recompute import recompute_layers
from core.training.segments import segmented_attention
from core.training.shared_prefix import share_prefix, shared_length, worth_sharing

CPU = torch.device("cpu")
LENGTHS = (75, 74, 90, 130)


def _rows(shared: int = 70, lengths: Sequence[int] = LENGTHS, unlabelled: int = 2) -> list[EncodedRow]:
    """Rows that begin with `shared` equal tokens; the last ones of each are not supervised."""
    random = np.random.default_rng(0)
    begun = random.integers(5, 380, size=shared)
    rows = []
    for index, length in enumerate(lengths):
        ids = np.concatenate([begun, random.integers(5, 380, size=length - shared)]).astype(np.int32)
        ids[shared] = 5 + index  # here they differ
        supervised = (np.arange(length) > shared) & (np.arange(length) < length - unlabelled)
        rows.append(EncodedRow(index, ids, supervised, False, length))
    return rows


def _installed(folder: Path, **tables: Any):
    config = parse_config({"model": {"path": str(folder)}, **tables})
    model = load_model(folder, CPU, torch.float32, quantisation_of(config.adapter, torch.float32))
    adaptation = Adaptation(config)
    adaptation.install(model, Material(_rows(), 0, load_tokenizer(folder), {}))
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.05)
        if isinstance(layer, AdaLoraLayer):
            torch.nn.init.normal_(layer.lora_e)
    train_mode(model)
    return model, adaptation


def _learned(model, adaptation: Adaptation, loss, batches: Sequence[Batch], prefix=None):
    total = sum((loss(model, batch) for batch in batches), torch.zeros(()))
    total.backward()
    if prefix is not None:
        prefix.backward()
    found = {name: parameter.grad.clone() for name, parameter in adaptation.parameters(model).items()}
    model.zero_grad()
    return total.detach(), found


def _same(found: tuple, expected: tuple) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-4)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", some_quick([*FAMILIES, *MIXTURES]))
def test_loss_and_gradients_are_those_of_whole_rows_in_every_family(family: str, tmp_path: Path) -> None:
    model, adaptation = _installed(build_tiny(family, tmp_path / family), adapter={"rank": 2})
    rows = _rows()  # longer than the sliding window of the tiny Gemmas
    expected = _learned(model, adaptation, direct_loss, [pad([row])[0] for row in rows])
    with segmented_attention(model):
        prefix = share_prefix(model, rows, CPU)
        assert prefix is not None and prefix.length == 70
        batches = prefix.pack(rows)
        found = _learned(model, adaptation, chunked_loss, batches, prefix)
    _same(found, expected)
    # what is behind the last supervised token and that token itself are not computed either
    assert sum(batch.input_ids.numel() for batch in batches) == sum(length - 70 - 3 for length in LENGTHS)
    assert sum(batch.tokens for batch in batches) == sum(LENGTHS)


@pytest.mark.parametrize("tables", [
    {"adapter": {"rank": 2}, "prefix": {"length": 4}}, {"adapter": {"method": "none"}, "bottleneck": {"size": 8}},
    {"adapter": {"method": "dora", "rank": 2}}, {"adapter": {"method": "adalora", "rank": 2}},
    {"adapter": {"method": "qlora", "rank": 2}}, {"adapter": {"rank": 2, "init": "pissa"}},
    {"adapter": {"method": "full"}}, {"adapter": {"rank": 2, "first_layer": 1}},
    {"adapter": {"rank": 2, "modules_to_save": ["embed_tokens"]}},
], ids=["prefix", "bottleneck", "dora", "adalora", "qlora", "pissa", "full", "upper layers", "embedding"])
def test_every_method_learns_the_same(tables: dict[str, Any], tiny_model: Path) -> None:
    model, adaptation = _installed(tiny_model, **tables)
    rows = _rows()
    with segmented_attention(model):
        expected = _learned(model, adaptation, chunked_loss, pack(rows))
        prefix = share_prefix(model, rows, CPU)
        assert prefix is not None
        _same(_learned(model, adaptation, chunked_loss, prefix.pack(rows), prefix), expected)


@pytest.mark.parametrize("lengths", [(110,) * 16, (300, 360, 290, 500)], ids=["short rests", "long rests"])
def test_the_gradients_of_several_passes_add_up_at_the_prefix(lengths: Sequence[int], tiny_model: Path) -> None:
    model, adaptation = _installed(tiny_model, adapter={"rank": 2})
    rows = _rows(lengths=lengths)
    with segmented_attention(model):
        expected = _learned(model, adaptation, chunked_loss, pack(rows))
        prefix = share_prefix(model, rows, CPU)
        assert prefix is not None
        batches = prefix.pack(rows[:2]) + prefix.pack(rows[2:])  # as with a batch size of 2, added up
        assert len(batches) > 2
        _same(_learned(model, adaptation, chunked_loss, batches, prefix), expected)


def test_in_sixteen_bits_the_rows_are_added_up_in_wider_numbers(tiny_model: Path) -> None:
    model = load_model(tiny_model, CPU, torch.bfloat16)
    rows = _rows(lengths=(90,) * 6)
    key = model.model.layers[0].self_attn.k_proj.weight.requires_grad_(True)
    with segmented_attention(model):
        prefix = share_prefix(model, rows, CPU)
        assert prefix is not None
        for batch in prefix.pack(rows):
            chunked_loss(model, batch).backward()
        assert {states.grad.dtype for states in prefix.of(1)} == {torch.float32}
        prefix.backward()
    assert key.grad is not None and key.grad.isfinite().all()


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_stop_within_a_step_leaves_nothing_behind(recomputed: bool, tiny_model: Path) -> None:
    model, _ = _installed(tiny_model, adapter={"rank": 2})
    if recomputed:
        recompute_layers(model)
    rows = _rows()
    with segmented_attention(model):
        prefix = share_prefix(model, rows, CPU)
        assert prefix is not None
        for batch in prefix.pack(rows):
            chunked_loss(model, batch).backward()
        states = weakref.ref(prefix.of(0)[0])
        prefix.backward()
    prefix.drop()
    gone = weakref.ref(prefix)
    del prefix, batch
    gc.collect()
    assert states() is None and gone() is None


@pytest.mark.parametrize("rope, shares", [("longrope", False), ("dynamic", False), ("default", True)])
def test_positions_that_depend_on_the_length_of_a_pass_are_not_shared(rope: str, shares: bool,
                                                                     tiny_model: Path) -> None:
    model, _ = _installed(tiny_model, adapter={"rank": 2})
    model.config.rope_parameters = {**(model.config.rope_parameters or {}), "rope_type": rope}
    path = choose_path(model, _rows(), "auto", CPU)
    assert path.packed and path.shares == shares
    assert path.reason == ("" if shares else "What rows begin with in common is computed in each of them, as the "
                           "positions of this model depend on the length of a row.")


def test_it_goes_with_activation_checkpointing(tiny_model: Path) -> None:
    model, adaptation = _installed(tiny_model, adapter={"rank": 2})
    rows = _rows()
    with segmented_attention(model):
        expected = _learned(model, adaptation, chunked_loss, pack(rows))
        assert recompute_layers(model)
        prefix = share_prefix(model, rows, CPU)
        assert prefix is not None
        _same(_learned(model, adaptation, chunked_loss, prefix.pack(rows), prefix), expected)


def test_prefix_and_pack_together_are_no_longer_than_a_pass_may_be(tiny_model: Path) -> None:
    model, _ = _installed(tiny_model, adapter={"rank": 2})
    most = (PACK_TOKENS - 200) // (57 + 25 + 1)
    rows = _rows(shared=200, lengths=[260] * 3 * most)
    with torch.no_grad(), segmented_attention(model):
        prefix = share_prefix(model, rows, CPU)
    assert prefix is not None
    batches = prefix.pack(rows)
    # 57 tokens each, a copy of 200 keys and values that counts as 25 tokens, and one for its mask
    assert [len(batch.rows) for batch in batches] == [most] * 3


def test_only_what_comes_before_the_first_prediction_is_shared() -> None:
    rows = _rows(shared=20, lengths=(40, 40))
    assert shared_length(rows) == 20
    early = replace(rows[1], supervised=np.arange(40) > 11)  # token 11 predicts the first one
    assert shared_length([rows[0], early]) == 11
    assert shared_length([rows[0], replace(rows[1], input_ids=rows[1].input_ids + 1)]) == 0
    assert shared_length(rows[:1]) == 0
    assert shared_length([replace(row, supervised=np.zeros(40, bool)) for row in (rows[0], rows[0])]) == 39


def test_it_has_to_save_more_than_another_pass_costs() -> None:
    assert worth_sharing(_rows(shared=95, lengths=(120, 120)), CPU) == 0
    assert worth_sharing(_rows(shared=96, lengths=(120, 120)), CPU) == 96
    assert worth_sharing(_rows(shared=96, lengths=(120, 120)), torch.device("cuda")) == 0


def test_a_model_that_can_not_go_on_from_it_computes_whole_rows(tiny_model: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    from core.training import segments

    model, _ = _installed(tiny_model, adapter={"rank": 2})
    rows = _rows()
    assert choose_path(model, rows, "auto", CPU).shares
    real = segments.packed_segments

    def without(*args: Any, shared_prefix: Any = None, **kwargs: Any) -> Any:
        return real(*args, **kwargs)

    monkeypatch.setattr(segments, "packed_segments", without)
    path = choose_path(model, rows, "auto", CPU)
    assert path.packed and not path.shares
    assert "computed in each of them" in path.reason
    assert choose_path(model, rows, "auto", CPU, share=False).reason == ""


def _config(model: Path, data: Path, adapter: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    training = {"max_steps": 10, "batch_size": 12, "learning_rate": 1e-2, "warmup_steps": 2, "device": "cpu",
                "dtype": "fp32", "evaluate_every": 5} | training
    return parse_config({"model": {"path": str(model)}, "adapter": adapter or {"rank": 4}, "training": training,
                         "data": {"train": [str(data)], "validation_fraction": 0.2}})


def _train(config: RunConfig, folder: Path) -> list[Event]:
    return list(train(Train(config, folder), Control()))


def _told(events: Sequence[Event]) -> bool:
    return any(isinstance(event, Note) and "once for all of them" in event.message for event in events)


def test_a_run_learns_the_same_with_and_without(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    # Adam makes a step of the rate even from the smallest gradient, whose rounding is all there is of it
    on, off = (_train(_config(tiny_model, data, shared_prefix=choice, learning_rate=1e-3), tmp_path / choice)
               for choice in ("auto", "off"))
    assert _told(on) and not _told(off)
    counts = [[(event.tokens, event.supervised_tokens) for event in events if isinstance(event, StepDone)]
              for events in (on, off)]
    assert counts[0] == counts[1]
    losses = [[event.loss for event in events if isinstance(event, StepDone | Evaluated)] for events in (on, off)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    mine, other = (load_file(tmp_path / choice / "adapter" / "adapter_model.safetensors") for choice in ("auto", "off"))
    for name, tensor in other.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_run_that_goes_on_ends_with_the_same_adapter(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, checkpoint_every=3)
    _train(config, tmp_path / "whole")
    control = Control()
    for event in train(Train(config, tmp_path / "parted"), control):
        if isinstance(event, StepDone) and event.step == 4:
            control.stop()
    list(resume(Resume(tmp_path / "parted"), Control()))
    whole, parted = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
                     for name in ("whole", "parted"))
    assert all(torch.equal(tensor, parted[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("adapter, training", [
    ({"rank": 4, "dropout": 0.1}, {}), ({"rank": 4}, {"packing": "off"}),
    ({"rank": 4, "first_layer": 1}, {"frozen_cache": "on", "max_steps": 0, "epochs": 2}),
], ids=["dropout", "padded rows", "frozen cache"])
def test_where_rows_can_not_share_they_are_whole(tiny_model: Path, data: Path, tmp_path: Path, adapter: dict[str, Any],
                                                training: dict[str, Any]) -> None:
    events = _train(_config(tiny_model, data, adapter, **training), tmp_path / "run")
    assert not _told(events) and isinstance(events[-1], Result)
