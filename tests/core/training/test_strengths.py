"""Several adapters in one answer, and strengths that change between two tokens."""

from pathlib import Path

import pytest
import torch

from core.config import LoraConfig
from core.control import Command, Control, Strengths
from core.engine import protocol
from core.errors import AdapterError
from core.events import Event, Result, TokenGenerated
from core.jobs import AdapterUse, Generate, from_plain, to_plain
from core.lora.adapter_file import save_adapter
from core.lora.inject import inject, lora_layers
from core.models.load import load_model
from core.training.generate import generate

QUESTION = (("user", "What is the capital of France?"),)


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        model = load_model(tiny_model, torch.device("cpu"), torch.float32)
        adapter = LoraConfig(rank=4)
        inject(model, adapter, seed)
        generator = torch.Generator().manual_seed(seed)
        for layer in lora_layers(model).values():
            layer.lora_b.data.normal_(0, 0.2, generator=generator)
        save_adapter(root / str(seed), model, adapter, str(tiny_model))
    return [root / "1", root / "2"]


def job(model: Path, *uses: tuple[Path, float], column: str = "tuned", tokens: int = 12) -> Generate:
    return Generate(str(model), None, {column: QUESTION}, max_new_tokens=tokens, device="cpu", dtype="fp32",
                    adapters=tuple(AdapterUse(path, strength) for path, strength in uses))


def answer(asked: Generate, warm: dict[str, object] | None = None, control: Control | None = None) -> str:
    events: list[Event] = list(generate(asked, control or Control(), warm))
    assert isinstance(events[-1], Result)
    return next(iter(events[-1].values["answers"].values()))


def test_strengths_decide_who_answers(tiny_model: Path, adapters: list[Path]) -> None:
    warm: dict[str, object] = {}
    one, two = adapters
    alone = [answer(job(tiny_model, (path, 1.0)), warm) for path in adapters]
    base = answer(job(tiny_model, column="base"), warm)
    assert len({*alone, base}) == 3
    assert answer(job(tiny_model, (one, 1.0), (two, 0.0)), warm) == alone[0]
    assert answer(job(tiny_model, (one, 0.0), (two, 1.0)), warm) == alone[1]
    assert answer(job(tiny_model, (one, 0.0), (two, 0.0)), warm) == base
    both = answer(job(tiny_model, (one, 0.7), (two, 0.3)), warm)
    assert both not in alone
    single = Generate(str(tiny_model), one, {"tuned": QUESTION}, max_new_tokens=12, device="cpu", dtype="fp32")
    assert answer(single, warm) == alone[0]  # the older way of asking


def test_a_strength_acts_on_the_next_token(tiny_model: Path, adapters: list[Path]) -> None:
    control = Control()
    tokens: list[str] = []
    for event in generate(job(tiny_model, (adapters[0], 1.0), tokens=30), control):
        if isinstance(event, TokenGenerated):
            tokens.append(event.text)
            if len(tokens) == 3:
                control.set_strengths(0.0)
    whole = answer(job(tiny_model, (adapters[0], 1.0), tokens=30))
    changed = "".join(tokens)
    assert changed != whole
    assert changed.startswith("".join(tokens[:3]))
    assert whole.startswith("".join(tokens[:3]))


def test_a_wrong_number_of_strengths_and_a_doubled_adapter_are_refused(tiny_model: Path, adapters: list[Path]) -> None:
    control = Control()
    control.set_strengths(1.0, 1.0)
    with pytest.raises(AdapterError, match="1 adapters, but 2 strengths"):
        answer(job(tiny_model, (adapters[0], 1.0)), control=control)
    with pytest.raises(AdapterError, match="named twice"):
        answer(job(tiny_model, (adapters[0], 1.0), (adapters[0], 0.5)))


def test_instructions_and_jobs_survive_the_way_to_the_engine(tmp_path: Path) -> None:
    for command in (Command.STOP, Strengths((0.25, -1.0))):
        told = protocol.decode(protocol.encode(protocol.Tell("x", command)))
        assert told == protocol.Tell("x", command)
    asked = job(tmp_path, (tmp_path / "a", 0.5))
    assert from_plain(to_plain(asked)) == asked
    with pytest.raises(ValueError, match="finite"):
        Strengths((float("nan"),))
