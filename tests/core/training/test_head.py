"""The output layer's product in pieces is the plain one."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import build_tiny

from core.config import LoraConfig
from core.lora.inject import inject
from core.models.load import load_model
from core.training.head import head_logits, quick_head

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("states", [1, 16, 17, 100])
@pytest.mark.parametrize("tokens", [384, 768, 2000])
def test_it_is_the_plain_product(states: int, tokens: int, with_bias: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 24, generator=generator).to(dtype) for n in (states, tokens))
    bias = torch.randn(tokens, generator=generator).to(dtype) if with_bias else None
    logits = head_logits(hidden, weight, bias)
    assert logits.is_contiguous() and logits.dtype == dtype
    torch.testing.assert_close(logits, F.linear(hidden, weight, bias), rtol=1e-5, atol=1e-5)


def test_a_model_answers_so_inside_and_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = load_model(build_tiny("gpt2", tmp_path / "gpt2"), CPU, torch.float32), torch.arange(3, 33)[None]
    seen: list[tuple[int, ...]] = []

    def watched(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(tuple(hidden.shape))
        return head_logits(hidden, weight, bias)

    monkeypatch.setattr("core.training.head.head_logits", watched)
    plain = model(ids).logits
    with quick_head(model):
        with torch.inference_mode():
            torch.testing.assert_close(model(ids).logits, plain, rtol=1e-5, atol=1e-5)
        assert [rows for rows, _ in seen] == [30]
        assert model(ids).logits.requires_grad == plain.requires_grad and len(seen) == 1
    with torch.inference_mode():
        model(ids)
    assert len(seen) == 1


def test_an_adapted_output_layer_keeps_its_own_product(tmp_path: Path) -> None:
    model = load_model(build_tiny("llama", tmp_path / "llama"), CPU, torch.float32)
    inject(model, LoraConfig(rank=2, target_modules=("lm_head",)), 0)
    head = model.get_output_embeddings()
    torch.nn.init.ones_(head.lora_b)
    with torch.inference_mode():
        plain = model(torch.arange(3, 9)[None]).logits
        with quick_head(model):
            assert torch.equal(model(torch.arange(3, 9)[None]).logits, plain)
