"""All packed rows in one call give what row after row gives. The kernel needs a GPU: here one of ours stands in."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen as kernel
from tiny_models import build_tiny, some_quick
from torch import Tensor

from core.config import LoraConfig
from core.data.batching import pack
from core.data.template import EncodedRow
from core.lora.inject import inject, lora_layers
from core.models.load import load_model
from core.training import segments, varlen
from core.training.loss import chunked_loss
from core.training.segments import attend_in_groups
from core.training.shared_prefix import compute_prefix
from core.training.varlen import attend_at_once, suits

CPU = torch.device("cpu")
LENGTHS = (3, 11, 1, 6)


def stand_in(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
             scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False) -> Tensor:
    """As the documentation of varlen_attn and of flash attention has it: the last query sees the last key."""
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError("heads")
    rows = []
    ends = zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), cu_seq_k[:-1].tolist(), cu_seq_k[1:].tolist(),
               strict=True)
    for first_q, last_q, first_k, last_k in ends:
        q = query[first_q:last_q].transpose(0, 1)
        k, v = (states[first_k:last_k].transpose(0, 1).repeat_interleave(query.shape[1] // key.shape[1], dim=0)
                for states in (key, value))
        assert q.shape[1] <= max_q
        assert k.shape[1] <= max_k
        distance = torch.arange(k.shape[1])[None, :] - torch.arange(q.shape[1])[:, None] - (k.shape[1] - q.shape[1])
        left, right = window_size
        seen = (distance <= right) & ((distance >= -left) if left >= 0 else torch.tensor(True))
        scores = q @ k.transpose(1, 2) * (scale if scale is not None else q.shape[-1] ** -0.5)
        rows.append((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(rows)


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    varlen._asked.cache_clear()
    yield
    varlen._asked.cache_clear()


@pytest.fixture
def with_kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A kernel for the CPU; the numbers of rows that it was given."""
    calls = []

    def counted(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(len(cu_seq_q) - 1)
        return stand_in(query, key, value, cu_seq_q, *args, **kwargs)

    monkeypatch.setattr(varlen, "_may_have_kernel", lambda query: True)
    monkeypatch.setattr(kernel, "varlen_attn", counted)
    return calls


def _rows() -> list[EncodedRow]:
    """Rows that begin with 70 equal tokens."""
    random = np.random.default_rng(0)
    begun = random.integers(5, 380, size=70)
    return [EncodedRow(index, np.concatenate([begun, random.integers(5, 380, size=more)]).astype(np.int32),
                       np.arange(70 + more) > 70, False, 70 + more) for index, more in enumerate((20, 5, 40))]


def _states(heads: int, length: int, seed: int) -> Tensor:
    return torch.randn(1, heads, length, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("shared_heads", [4, 2])
def test_it_is_what_the_rows_give_one_by_one(window: int | None, before: int, shared_heads: int,
                                             with_kernel: list[int]) -> None:
    query = _states(4, sum(LENGTHS), 0)
    totals = [length + before for length in LENGTHS]
    key, value = (_states(shared_heads, sum(totals), seed) for seed in (1, 2))
    found = attend_at_once(query, key, value, LENGTHS, totals, 0.3, window)
    expected = torch.cat([attend_in_groups(*row, 0.3, window, None) for row in zip(
        query.split(LENGTHS, dim=2), key.split(totals, dim=2), value.split(totals, dim=2), strict=True)], dim=1)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(each.square().sum(), (query, key, value)) for each in (found, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("family", some_quick(("llama", "gpt2", "gemma3", "mistral"), ("llama", "gemma3")))
@pytest.mark.parametrize("shared", [False, True])
def test_a_model_learns_the_same(family: str, shared: bool, tmp_path: Path, with_kernel: list[int],
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(build_tiny(family, tmp_path / family), CPU, torch.float32)
    for layer in inject(model, LoraConfig(rank=2), seed=0).values():
        torch.nn.init.normal_(layer.lora_b, std=0.05, generator=torch.Generator().manual_seed(1))
    rows = _rows()
    results = []
    for at_once in (True, False):
        if not at_once:
            monkeypatch.setattr(segments, "suits", lambda *args: False)
        with segments.segmented_attention(model):
            prefix = compute_prefix(model, rows, 70, CPU) if shared else None
            batches = prefix.pack(rows) if prefix is not None else pack(rows)
            loss = torch.stack([chunked_loss(model, batch) for batch in batches]).sum()
            loss.backward()
            if prefix is not None:
                prefix.backward()
        results.append([loss.detach(), *(layer.lora_b.grad.clone() for layer in lora_layers(model).values())])
        model.zero_grad()
    assert len(rows) in with_kernel
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def _suits(window: int | None = None, goes_on: bool = True, softcap: float | None = None) -> bool:
    return suits(_states(4, 9, 0), *(_states(2, 9, seed) for seed in (1, 2)), window, goes_on, softcap,
                 attend_in_groups)


def test_a_kind_is_asked_once(with_kernel: list[int]) -> None:
    assert _suits()
    assert _suits()
    assert with_kernel == [2]
    assert _suits(window=4)
    assert _suits(goes_on=False)
    assert not _suits(softcap=50.0)
    assert with_kernel == [2, 2, 2]


def test_a_kernel_that_gives_something_else_is_not_taken(with_kernel: list[int],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    def first_sees_first(query: Tensor, key: Tensor, *args: Any, window_size: tuple[int, int], **kwargs: Any) -> Tensor:
        more = 3 if len(query) != len(key) else 0  # as where the first query stands at the first key
        return stand_in(query, key, *args, window_size=(window_size[0], window_size[1] - more), **kwargs)

    monkeypatch.setattr(kernel, "varlen_attn", first_sees_first)
    assert not _suits()
    assert _suits(goes_on=False)


@pytest.mark.parametrize("ignored", [{"window_size": (-1, 0)}, {"scale": None}], ids=["window", "scale"])
def test_a_kernel_that_ignores_something_is_not_taken(ignored: dict[str, Any], with_kernel: list[int],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "varlen_attn",
                        lambda *args, **kwargs: stand_in(*args, **{**kwargs, **ignored}))
    assert not _suits(window=4_096)


def test_values_that_are_narrower_than_keys_come_one_by_one(with_kernel: list[int]) -> None:
    query, key, value = _states(4, 9, 0), _states(2, 9, 1), _states(2, 9, 2)[..., :4]
    assert not suits(query, key, value, None, False, None, attend_in_groups)
    assert not with_kernel


def test_what_an_answer_has_asked_for_can_be_trained_with(with_kernel: list[int]) -> None:
    lengths = (2, 5)
    with torch.inference_mode():
        starts = varlen._starts(lengths, CPU)
    assert not starts.is_inference()
    assert varlen._starts(lengths, CPU) is starts


@pytest.mark.parametrize("error", [TypeError("an older torch has no window"), RuntimeError("no kernel for this GPU")])
def test_where_the_kernel_does_not_run_rows_come_one_by_one(error: Exception, with_kernel: list[int],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Tensor:
        raise error

    monkeypatch.setattr(kernel, "varlen_attn", fails)
    assert not _suits()


@pytest.mark.parametrize("within", [torch.no_grad, torch.inference_mode,
                                    lambda: torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda _: None)])
def test_it_can_be_asked_anywhere(within: Callable[[], Any], with_kernel: list[int]) -> None:
    with within():
        assert _suits()


def test_on_the_cpu_nothing_is_asked() -> None:
    assert not _suits()


def test_no_random_number_is_drawn(with_kernel: list[int]) -> None:
    before = torch.get_rng_state()
    assert _suits(goes_on=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 512])
@pytest.mark.parametrize("goes_on", [False, True])
def test_the_kernel_of_a_gpu_is_taken(window: int | None, goes_on: bool) -> None:
    query, key, value = (torch.randn(1, heads, 64, 128, device="cuda", dtype=torch.bfloat16) for heads in (32, 8, 8))
    assert suits(query, key, value, window, goes_on, None, attend_in_groups)
