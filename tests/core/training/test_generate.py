"""Answers against transformers' own generate, whole characters, stops, and the warm model."""

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, build_tiny, build_tokenizer, some_quick

from core.config import LoraConfig
from core.control import Control
from core.data.template import render_prompt
from core.errors import Cancelled, CoreError
from core.events import Event, GenerationDone, Result, TokenGenerated, Warned
from core.jobs import Generate
from core.lora.adapter_file import save_adapter
from core.lora.inject import inject, lora_layers
from core.models.load import load_model, load_tokenizer
from core.records import Message
from core.training import generate as generate_module
from core.training.decode import Answer, Sampling, TextStream, choose, stop_tokens
from core.training.generate import end_of_turn, generate

QUESTION = (("user", "What is the capital of France?"),)


def make_adapter(base: Path, folder: Path, seed: int, fingerprint: str = "") -> Path:
    model = load_model(base, torch.device("cpu"), torch.float32)
    adapter = LoraConfig(rank=4)
    inject(model, adapter, seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_b.data.normal_(0, 0.2, generator=generator)
    save_adapter(folder, model, adapter, str(base), {"base_fingerprint": fingerprint} if fingerprint else {})
    return folder


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [make_adapter(tiny_model, root / str(seed), seed) for seed in (1, 2)]


def ask(model: Path, adapter: Path | None, columns: tuple[str, ...] = ("base", "tuned"),
        warm: dict[str, object] | None = None, **options: object) -> tuple[dict[str, str], list[Event]]:
    options = {"max_new_tokens": 12, "device": "cpu", "dtype": "fp32", **options}
    job = Generate(str(model), adapter, dict.fromkeys(columns, QUESTION), **options)  # type: ignore[arg-type]
    events = list(generate(job, Control(), warm))
    result = events[-1]
    assert isinstance(result, Result)
    return result.values["answers"], events


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_greedy_is_that_of_transformers(family: str, tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / family)
    model, tokenizer = load_model(base, torch.device("cpu"), torch.float32), load_tokenizer(base)
    prompt = render_prompt([Message("user", "A small model learns quickly. " * 40)], tokenizer)[:300]
    expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=16,  # type: ignore[operator]
                              eos_token_id=None, pad_token_id=0)[0, len(prompt):].tolist()
    answer = Answer(model, prompt, Sampling(), frozenset(), 16)
    while answer.step(Control()) is not None:
        pass
    assert answer.tokens == expected  # the prompt is longer than one prefill, so its pieces fit together
    assert answer.at_limit


def test_both_columns_stream_in_turn_and_differ(tiny_model: Path, adapters: list[Path]) -> None:
    answers, events = ask(tiny_model, adapters[0])
    pieces = [event for event in events if isinstance(event, TokenGenerated)]
    for column in ("base", "tuned"):
        assert "".join(piece.text for piece in pieces if piece.column == column) == answers[column]
    assert answers["base"] != answers["tuned"]
    first = [piece.column for piece in pieces]
    assert first.index("tuned") < len(first) - 1 - first[::-1].index("base")
    ends = [event for event in events if isinstance(event, GenerationDone)]
    assert sorted(end.column for end in ends) == ["base", "tuned"]
    alone, _ = ask(tiny_model, None, ("base",))
    assert alone["base"] == answers["base"]


def test_the_base_is_the_same_beside_an_adapter_and_after_it(tiny_model: Path, adapters: list[Path],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []

    def counted(path: Path, *args: object) -> object:
        loads.append(path)
        return load_model(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(generate_module, "load_model", counted)
    warm: dict[str, object] = {}
    first, _ = ask(tiny_model, adapters[0], warm=warm)
    second, _ = ask(tiny_model, adapters[1], warm=warm)
    bare, _ = ask(tiny_model, None, ("base",), warm=warm)
    again, _ = ask(tiny_model, adapters[0], warm=warm)
    assert first == again
    assert first["base"] == second["base"] == bare["base"]
    assert first["tuned"] != second["tuned"]
    assert len(loads) == 1
    warm.clear()
    ask(tiny_model, None, ("base",), warm=warm)
    assert len(loads) == 2


def test_an_adapter_that_changed_on_the_disk_is_read_again(tiny_model: Path, tmp_path: Path,
                                                           adapters: list[Path]) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    warm: dict[str, object] = {}
    answers = []
    for source in adapters:
        for path in source.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        answers.append(ask(tiny_model, folder, warm=warm)[0]["tuned"])
    assert answers[0] != answers[1]


def test_a_run_folder_stands_for_its_adapter(tiny_model: Path, tmp_path: Path, adapters: list[Path]) -> None:
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    for path in adapters[0].iterdir():
        (run / "adapter" / path.name).write_bytes(path.read_bytes())
    assert ask(tiny_model, run)[0] == ask(tiny_model, adapters[0])[0]


def test_a_stop_ends_within_a_token_and_keeps_the_text(tiny_model: Path, adapters: list[Path]) -> None:
    control = Control()
    job = Generate(str(tiny_model), adapters[0], {"base": QUESTION, "tuned": QUESTION}, max_new_tokens=200,
                   device="cpu", dtype="fp32")
    events: list[Event] = []
    for event in generate(job, control):
        events.append(event)
        if sum(isinstance(item, TokenGenerated) for item in events) == 5:
            control.stop()
    result = events[-1]
    assert isinstance(result, Result)
    assert result.values["stopped"]
    assert sum(result.values["tokens"].values()) < 40
    ends = [event for event in events if isinstance(event, GenerationDone)]
    assert len(ends) == 2
    assert all(end.stopped for end in ends)


def test_a_stop_before_the_model_is_there(tiny_model: Path) -> None:
    control = Control()
    control.stop()
    job = Generate(str(tiny_model), None, {"base": QUESTION}, device="cpu", dtype="fp32")
    with pytest.raises(Cancelled):
        list(generate(job, control))


def test_the_same_seed_gives_the_same_answer(tiny_model: Path) -> None:
    options = {"temperature": 1.0, "top_p": 0.9}
    first = ask(tiny_model, None, ("base",), seed=3, **options)[0]
    assert first == ask(tiny_model, None, ("base",), seed=3, **options)[0]
    assert first != ask(tiny_model, None, ("base",), seed=4, **options)[0]


def test_top_p_keeps_the_smallest_set() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    generator = torch.Generator().manual_seed(0)
    drawn = {choose(logits, Sampling(1.0, 0.7), generator) for _ in range(300)}
    assert drawn == {0, 1}
    assert {choose(logits, Sampling(1.0, 1e-6), generator) for _ in range(50)} == {0}
    assert {choose(logits, Sampling(1.0, 1.0), generator) for _ in range(500)} == {0, 1, 2, 3}
    assert choose(logits, Sampling(0.0), generator) == 0


def test_drawn_shares_follow_the_temperature() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([choose(logits, Sampling(2.0), generator) for _ in range(6000)]).bincount(minlength=3) / 6000
    assert torch.allclose(drawn, torch.softmax(logits / 2, -1), atol=0.02)


@pytest.mark.parametrize("text", ["Zwölf Boxkämpfer 🦊🇫🇷 jagen 你好, Viktor.", "a  b\n\n  c\t", "🦊" * 9])
def test_text_arrives_in_whole_characters(text: str) -> None:
    tokenizer = build_tokenizer()
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert "".join(pieces) + stream.finish() == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_a_broken_character_at_the_end_is_shown_as_such() -> None:
    tokenizer = build_tokenizer()
    stream = TextStream(tokenizer)
    ids = tokenizer("a🦊", add_special_tokens=False)["input_ids"][:-1]
    text = "".join(stream.push(token) for token in ids)
    assert text == "a"
    assert "\N{REPLACEMENT CHARACTER}" in stream.finish()


def test_stop_tokens_from_all_three_places() -> None:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    assert end_of_turn(tokenizer) == 2  # <|im_end|>, by the chat template
    assert stop_tokens([5, 6], tokenizer, end_of_turn(tokenizer)) == {0, 2, 5, 6}
    assert stop_tokens(None, tokenizer, None) == {0}


def test_an_answer_ends_at_a_stop_token_without_saying_it(tiny_model: Path) -> None:
    model = load_model(tiny_model, torch.device("cpu"), torch.float32)
    free = Answer(model, [5, 6, 7], Sampling(), frozenset(), 10)
    while free.step(Control()) is not None:
        pass
    stop = free.tokens[4]
    answer = Answer(model, [5, 6, 7], Sampling(), frozenset({stop}), 10)
    while answer.step(Control()) is not None:
        pass
    assert answer.tokens == free.tokens[:free.tokens.index(stop)]
    assert answer.ended
    assert not answer.at_limit


def test_an_answer_ends_with_the_context(tiny_model: Path) -> None:
    long = (("user", "word " * 200),)
    model, tokenizer = load_model(tiny_model, torch.device("cpu"), torch.float32), load_tokenizer(tiny_model)
    prompt = render_prompt([Message(*turn) for turn in long], tokenizer)
    model.config.max_position_embeddings = len(prompt) + 3
    assert generate_module._room(model, len(prompt)) == 3
    model.config.max_position_embeddings = len(prompt)
    with pytest.raises(CoreError, match="this model reads at most"):
        generate_module._room(model, len(prompt))


def test_what_can_not_be_asked(tiny_model: Path, adapters: list[Path]) -> None:
    with pytest.raises(CoreError, match="no adapter"):
        ask(tiny_model, None, ("tuned",))
    with pytest.raises(CoreError, match="no column 'other'"):
        ask(tiny_model, adapters[0], ("other",))
    with pytest.raises(CoreError, match="nothing to answer"):
        ask(tiny_model, adapters[0], ())


def test_another_base_than_in_training_is_said(tiny_model: Path, tmp_path: Path,
                                               adapters: list[Path]) -> None:
    stranger = make_adapter(tiny_model, tmp_path / "adapter", 1, fingerprint="0" * 64)
    _, events = ask(tiny_model, stranger)
    assert any(isinstance(event, Warned) for event in events)
    _, events = ask(tiny_model, adapters[0])
    assert not any(isinstance(event, Warned) for event in events)


def test_an_adapter_of_another_model_is_refused_and_the_base_still_answers(
        tiny_model: Path, tmp_path: Path, adapters: list[Path]) -> None:
    other = build_tiny("qwen3", tmp_path / "qwen3")
    warm: dict[str, object] = {}
    with pytest.raises(CoreError):
        ask(other, adapters[0], warm=warm)
    assert ask(other, None, ("base",), warm=warm)[0]["base"] == ask(other, None, ("base",))[0]["base"]


