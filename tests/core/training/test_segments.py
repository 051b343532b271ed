"""Packed rows are kept apart exactly, and the chunked loss is the loss, in every family."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import FAMILIES, build_tiny, some_quick
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, PretrainedConfig

from core.config import LoraConfig
from core.data.batching import pack, pad, step_rows
from core.data.template import EncodedRow
from core.lora.inject import inject, lora_layers
from core.models.load import load_model
from core.training import loss as losses
from core.training.computing_path import choose_path
from core.training.loss import chunked_cross_entropy, chunked_loss, direct_loss
from core.training.segments import segmented_attention

CPU = torch.device("cpu")


def _rows(lengths: tuple[int, ...]) -> list[EncodedRow]:
    random = np.random.default_rng(0)
    return [EncodedRow(index, random.integers(5, 380, size=length).astype(np.int32),
                       np.arange(length) >= length // 2, False, length) for index, length in enumerate(lengths)]


def _adapted(folder: Path):
    model = load_model(folder, CPU, torch.float32)
    torch.manual_seed(0)
    for layer in inject(model, LoraConfig(rank=2), seed=0).values():
        torch.nn.init.normal_(layer.lora_b, std=0.05)
    return model


def _loss_and_gradients(model, loss, batches):
    model.zero_grad()
    total = sum(loss(model, batch) for batch in batches)
    total.backward()
    return total.detach(), [item.grad for layer in lora_layers(model).values() for item in (layer.lora_a, layer.lora_b)]


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_packed_rows_and_chunked_loss_equal_one_row_at_a_time(family: str, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 384 * 7)  # several chunks even here
    model = _adapted(build_tiny(family, tmp_path / family))
    rows = _rows((12, 90, 33, 7))  # one of them longer than the sliding window of the tiny Gemmas
    expected, gradients = _loss_and_gradients(model, direct_loss, [pad([row])[0] for row in rows])
    with segmented_attention(model):
        packed, packed_gradients = _loss_and_gradients(model, chunked_loss, pack(rows))
    padded, padded_gradients = _loss_and_gradients(model, chunked_loss, pad(rows))
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(padded, expected, rtol=1e-5, atol=1e-4)
    for mine, others, reference in zip(packed_gradients, padded_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(others, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_every_family_takes_the_fast_path(family: str, tmp_path: Path) -> None:
    model = _adapted(build_tiny(family, tmp_path / family))
    path = choose_path(model, _rows((30, 25, 40)), "auto", CPU)
    assert (path.summed_loss, path.packed, path.reason, path.shares) == (chunked_loss, True, "", True)


@pytest.mark.parametrize("kind", [
    lambda common: CohereConfig(**common, logit_scale=0.3, num_key_value_heads=2),
    lambda common: GraniteConfig(**common, logits_scaling=4.0, num_key_value_heads=2),
], ids=["times (Cohere)", "divided by (Granite)"])
def test_logits_that_are_scaled_take_the_fast_path_too(kind: Callable[[dict[str, int]], PretrainedConfig]) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind({
        "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0})).eval()
    rows = _rows((12, 40))
    expected = sum(direct_loss(model, pad([row])[0]) for row in rows)
    torch.testing.assert_close(chunked_loss(model, pad(rows)[0]), expected, rtol=1e-5, atol=1e-4)
    path = choose_path(model, rows, "auto", CPU)
    assert path.summed_loss is chunked_loss and path.packed, path.reason


def test_a_model_that_leaks_between_rows_is_padded_and_says_so(tiny_model: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    from core.training import segments

    model = _adapted(tiny_model)
    monkeypatch.setattr(segments, "packed_segments", lambda *args, boundaries=(), **kwargs: (_ for _ in ()).throw(
        NotImplementedError))
    path = choose_path(model, _rows((30, 25)), "auto", CPU)
    assert isinstance(path.batches, partial) and path.batches.func is pad
    assert not path.packed and not path.shares
    assert "padded" in path.reason


@pytest.mark.parametrize("packing", ["auto", "on", "off"])
def test_a_model_with_another_output_layer_is_computed_the_plain_way_and_says_so(
        packing: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.training import computing_path

    def fails(*args: Any) -> Tensor:
        raise NotImplementedError

    model = _adapted(tiny_model)
    monkeypatch.setattr(computing_path, "chunked_loss", fails)
    path = choose_path(model, _rows((30, 25)), packing, CPU)
    assert path.summed_loss is direct_loss
    assert path.packed == path.shares == (packing != "off")
    assert path.reason == "The output layer of this model is computed the plain way, with more memory."


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_chunked_cross_entropy_equals_torch(softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 50)
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(9, 6, requires_grad=True), torch.randn(20, 6), torch.randn(20)
    labels = torch.randint(20, (9,))
    mine = chunked_cross_entropy(hidden, weight, bias, labels, softcap)
    (mine * 0.5).backward()
    gradient, hidden.grad = hidden.grad, None
    logits = F.linear(hidden, weight, bias)
    reference = F.cross_entropy(logits if softcap is None else softcap * torch.tanh(logits / softcap), labels,
                                reduction="sum")
    (reference * 0.5).backward()
    torch.testing.assert_close(mine, reference)
    torch.testing.assert_close(gradient, hidden.grad)


def test_an_epoch_visits_every_row_once_and_the_next_in_another_order() -> None:
    first = [index for step in range(3) for index in step_rows(step, 10, 4, seed=1)]
    second = [index for step in range(3, 6) for index in step_rows(step, 10, 4, seed=1)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_packs_and_pads_keep_every_token_and_respect_the_limit() -> None:
    rows = _rows((100, 30, 80, 250, 10))
    for batches in (pack(rows, limit=150), pad(rows, limit=150)):
        assert sum(batch.tokens for batch in batches) == 470
        assert sum(len(batch.labels) for batch in batches) == sum(int(row.supervised.sum()) for row in rows)
        assert all(batch.input_ids.numel() <= 150 or batch.tokens == 250 for batch in batches)


def test_rows_are_packed_into_few_batches() -> None:
    rows = _rows((90, 300, 80, 120, 401, 33))  # in their order they would need three
    batches = pack(rows, limit=512)
    assert [[row.index for row in batch.rows] for batch in batches] == [[0, 1, 3], [2, 4, 5]]
    assert len(pack(_rows((100,) * 7), limit=300)) == 3
    assert [batch.tokens for batch in pack(_rows((600, 20)), limit=512)] == [600, 20]
