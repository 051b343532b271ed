"""The real starter model."""

import time
from pathlib import Path

import pytest
import torch
import transformers

from core.control import Control
from core.errors import ModelError
from core.events import Result
from core.models import starter
from core.models.inspect import read_card
from core.models.load import load_model, load_tokenizer

CPU = torch.device("cpu")
pytestmark = pytest.mark.starter


def test_card(starter_model: Path) -> None:
    card = read_card(starter_model)
    assert card.parameters == 134_515_008 and card.layers == 30 and card.context_length == 8192
    assert card.dtype == "bf16" and card.tied_embeddings and card.has_chat_template
    assert "Q4_1" in card.origin and "dequantised" in card.origin


def test_it_answers(starter_model: Path) -> None:
    tokenizer = load_tokenizer(starter_model)
    model = load_model(starter_model, CPU, torch.float32)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}],
                                        add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1]:]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_digits_are_split_as_the_model_was_trained(starter_model: Path) -> None:
    tokens = load_tokenizer(starter_model).tokenize("Order 123")
    assert tokens == ["Order", "Ġ", "1", "2", "3"]


@pytest.mark.full
def test_same_logits_as_the_gguf_itself(starter_model: Path) -> None:
    source = starter.starter_source()
    assert source is not None
    direct = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True)).eval()
    ours = load_model(starter_model, CPU, torch.bfloat16)
    weights = dict(ours.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in direct.named_parameters())
    ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        assert torch.equal(direct(input_ids=ids).logits, ours(input_ids=ids).logits)


def test_done_is_told_at_once(starter_model: Path) -> None:
    start = time.monotonic()
    events = list(starter.ensure_starter_in(starter_model.parent, Control()))
    assert events == [Result({"path": starter_model, "name": "SmolLM2-135M-Instruct"})]
    assert time.monotonic() - start < 0.5


def test_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "_PACKAGE", "no_such_package_here")
    assert starter.starter_source() is None
    with pytest.raises(ModelError, match="not installed"):
        list(starter.ensure_starter(Control()))
