"""Answers in slots are those of every row alone."""

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, MIXTURES, build_tiny, some_quick
from transformers import PreTrainedModel

from core.config import LoraConfig
from core.control import Control
from core.errors import Cancelled
from core.lora.inject import inject, lora_layers
from core.models.load import load_model
from core.training import batch_generate
from core.training.batch_generate import answer_batch, why_not_in_slots
from core.training.decode import Answer, Sampling
from core.training.slots import Slots

LIMIT = 12
CPU = torch.device("cpu")
PADDED = {"gemma2"}  # which caps its scores


def _model(folder: Path) -> PreTrainedModel:
    return load_model(folder, CPU, torch.float32)


def _prompts(lengths: tuple[int, ...] = (4, 19, 7, 7, 30, 1, 12, 9)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]


def _alone(model: PreTrainedModel, prompts: list[list[int]], stops: frozenset[int] = frozenset()) -> list[list[int]]:
    found = []
    for prompt in prompts:
        answer = Answer(model, prompt, Sampling(), stops, LIMIT)
        while not answer.ended:
            answer.step(Control())
        found.append(answer.tokens)
    return found


@pytest.mark.parametrize("family", some_quick([*FAMILIES, *MIXTURES]))
def test_every_family_gives_the_answers_of_single_rows(family: str, tmp_path: Path) -> None:
    model = _model(build_tiny(family, tmp_path / family))
    prompts = _prompts()
    assert bool(why_not_in_slots(model, prompts, LIMIT)) == (family in PADDED)
    found = dict(answer_batch(model, prompts, frozenset(), LIMIT, Control(), 3))
    assert [found[number] for number in range(len(prompts))] == _alone(model, prompts)


def test_rows_come_and_go_in_small_steps(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(tiny_model)
    prompts = _prompts() + _prompts((3, 33, 5, 6))
    single = _alone(model, prompts)
    stops = frozenset({single[0][1], single[3][4], single[9][0]})
    monkeypatch.setitem(batch_generate._PREFILL_TOKENS, "cpu", 16)
    monkeypatch.setattr(batch_generate, "_SMALLEST_CAPACITY", 16)
    for rows in (1, 4):
        found = dict(answer_batch(model, prompts, stops, LIMIT, Control(), rows))
        assert [found[number] for number in range(len(prompts))] == _alone(model, prompts, stops)


def test_an_adapter_is_part_of_the_answers(tiny_model: Path) -> None:
    model = _model(tiny_model)
    prompts = _prompts()
    before = _alone(model, prompts)
    inject(model, LoraConfig(rank=4, target_modules="all-linear"), seed=0)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.3)
    found = dict(answer_batch(model.eval(), prompts, frozenset(), LIMIT, Control()))
    assert [found[number] for number in range(len(prompts))] == _alone(model, prompts) != before


def test_what_slots_get_wrong_is_answered_the_plain_way(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(tiny_model)
    prompts = _prompts()
    original = Slots.attention
    monkeypatch.setattr(Slots, "attention", lambda *arguments: 1.01 * original(*arguments))
    assert why_not_in_slots(model, prompts, LIMIT)
    found = dict(answer_batch(model, prompts, frozenset(), LIMIT, Control()))
    assert [found[number] for number in range(len(prompts))] == _alone(model, prompts)


def test_long_rows_are_held_in_smaller_numbers(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(tiny_model)
    made: list[int] = []

    class Counted(Slots):
        def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
            made.append(rows)
            super().__init__(rows, capacity, device)

    monkeypatch.setattr(batch_generate, "Slots", Counted)
    monkeypatch.setattr(batch_generate, "_CACHE_BYTES", 3 * 256 * batch_generate._token_bytes(model))
    prompts = _prompts()
    assert len(list(answer_batch(model, prompts, frozenset(), 3, Control()))) == len(prompts)
    assert made[-1] == 3


def test_the_model_is_as_before_when_nobody_asks_for_more(tiny_model: Path) -> None:
    model = _model(tiny_model)
    before = model.config._attn_implementation
    stream = answer_batch(model, _prompts(), frozenset(), LIMIT, Control(), 2)
    next(stream)
    stream.close()
    assert model.config._attn_implementation == before
    control = Control()
    control.stop()
    with pytest.raises(Cancelled):
        next(answer_batch(model, _prompts(), frozenset(), LIMIT, control, 2))
    assert model.config._attn_implementation == before
