"""The sample dataset: exactly what its generator writes, split without overlap, and true to its own rules."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from core.config import load_config
from core.data.formats import to_conversation
from core.data.readers import read_rows
from core.scoring import HeldOutRow, exact_match, is_exact

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "resources" / "samples" / "orders"


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


words = load_tool("sample_words")
orders = load_tool("sample_orders")
writer = load_tool("sample_writer")


def read(name: str) -> list[tuple[str, str]]:
    """(message, answer) of every row."""
    rows = []
    for line in (SAMPLE / name).read_text(encoding="utf-8").splitlines():
        system, user, assistant = json.loads(line)["messages"]
        assert [system["role"], user["role"], assistant["role"]] == ["system", "user", "assistant"]
        rows.append((user["content"], assistant["content"]))
    return rows


TRAINING, HELD_OUT = read("train.jsonl"), read("heldout.jsonl")


def test_the_files_are_exactly_what_the_generator_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(REPOSITORY / "tools" / "make_sample.py"), "--out", str(tmp_path)], check=True)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in SAMPLE.iterdir()}


def test_another_seed_gives_other_rows() -> None:
    mix = orders.Mix(corrected=0.5, slips=0.1, listed=0.1, large=0.3, in_words=0.6, things=(45, 38, 17), given=0.6,
                     corrections={"tail_add": 1})
    rows = [writer.Writer(words.TRAINING, mix, seed).row().message for seed in ("a", "a", "b")]
    assert rows[0] == rows[1] != rows[2]


def test_there_are_enough_rows() -> None:
    assert len(TRAINING) >= 600
    assert len(HELD_OUT) >= 100
    assert len(words.TRAINING.frames) >= 60
    assert len(words.HELD_OUT.frames) >= 24


def things(answer: str) -> list[str]:
    """The things of an answer without their numbers."""
    return [item.partition(" ")[2] for item in json.loads(answer)["items"]]


def shipping(answer: str) -> dict[str, str]:
    """What the answer says under "for", "to" and "on"."""
    parts = [part.partition(" ") for part in json.loads(answer).get("ship", [])]
    return {word: value for word, _, value in parts}


def combination(answer: str) -> tuple[Any, ...]:
    return (frozenset(things(answer)), *sorted(shipping(answer).items()))


def test_no_combination_occurs_twice_or_in_both_parts() -> None:
    found = [combination(answer) for _, answer in TRAINING + HELD_OUT]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("kind", sorted(words.TRAINING.wordings()))
def test_held_out_wordings_are_not_trained_on(kind: str) -> None:
    def plain(wordings: tuple[str, ...]) -> set[str]:
        return {re.sub(r"\s+", " ", wording.lower()).strip() for wording in wordings}

    training, held_out = plain(words.TRAINING.wordings()[kind]), plain(words.HELD_OUT.wordings()[kind])
    assert len(training) == len(words.TRAINING.wordings()[kind])
    assert not training & held_out


def value_words(part: list[tuple[str, str]]) -> set[str]:
    """Every word of the things, names and cities in the answers."""
    found = set()
    for _, answer in part:
        ship = shipping(answer)
        for text in (*things(answer), ship.get("for", ""), ship.get("to", "")):
            found |= set(re.findall(r"\w+", text.lower()))
    return found - {"of"}


def test_held_out_values_never_occur_in_training() -> None:
    trained = value_words(TRAINING)
    for _, answer in HELD_OUT:
        unseen = value_words([("", answer)])
        assert not unseen & trained, answer


def test_held_out_dates_never_occur_in_training() -> None:
    def dates(part: list[tuple[str, str]]) -> set[str]:
        return {day for _, answer in part if (day := shipping(answer).get("on", ""))[:1].isdigit()}

    assert dates(HELD_OUT)
    assert not dates(HELD_OUT) & dates(TRAINING)
    assert {day.split()[1] for day in dates(HELD_OUT)} <= {day.split()[1] for day in dates(TRAINING)}


@pytest.mark.parametrize("part", [TRAINING, HELD_OUT], ids=["training", "held out"])
def test_every_answer_follows_from_its_message(part: list[tuple[str, str]]) -> None:
    for message, answer in part:
        values, ship = json.loads(answer), shipping(answer)
        assert json.dumps(values, ensure_ascii=False, separators=(",", ":")) == answer
        assert list(values) == ["items", "ship"][:len(values)]
        assert list(ship) == [word for word in ("for", "to", "on") if word in ship]
        for item in values["items"]:
            count, _, thing = item.partition(" ")
            assert thing in message, message
            assert 1 <= int(count) <= 50
        assert ship.get("for", "") in message, message
        assert ship.get("to", "") in message, message
        assert mentions_day(message, ship.get("on")), message


def mentions_day(message: str, day: str | None) -> bool:
    """The weekday or date is there; without one, no weekday and no month is."""
    lower = message.lower()
    if day is None:
        return not re.search(r"\b(mon|tues|wednes|thurs|fri|satur|sun)day\b|\d (january|february|march|april)", lower)
    if day[0].isdigit():
        number, month = day.split()
        return bool(re.search(rf"\b{number}(st|nd|rd|th)?\b", message)) and month[:3] in message
    return bool(re.search(rf"\b{day[:2].lower()}", lower))


def test_corrections_of_every_kind_are_in_both_parts() -> None:
    for part, half in ((TRAINING, words.TRAINING), (HELD_OUT, words.HELD_OUT)):
        text = "\n".join(message.lower() for message, _ in part)
        for kind, wordings in half.wordings().items():
            if kind in ("frames", "inline_value", "greetings"):
                continue
            starts = [re.split(r"[{]", wording.lower())[0].strip() for wording in wordings]
            assert any(start and start in text for start in starts), kind


def test_a_frame_loses_the_parts_whose_slots_are_empty() -> None:
    frame = "[{name}[ from {city}] wants ]{items}[ on {day}]."
    slots = {"items": "a cup", "name": "Ana", "city": "", "day": "Friday"}
    assert writer.fill(frame, slots) == "Ana wants a cup on Friday."
    order = orders.Order((orders.Item("cup", 1),), city="Lima")
    assert not writer.fits(frame, order)
    assert writer.fits(frame, orders.Order(order.items, name="Ana", city="Lima"))


@pytest.mark.parametrize(("thing", "several"), [
    ("cup", "cups"), ("glass box", "glass boxes"), ("battery", "batteries"), ("tray", "trays"),
    ("bag of rice", "bags of rice"), ("box of nails", "boxes of nails"), ("peach", "peaches"),
])
def test_plurals(thing: str, several: str) -> None:
    assert orders.plural(thing) == several


def test_the_run_file_trains_the_starter_on_the_rows() -> None:
    config = load_config(SAMPLE / "run.toml")
    assert config.model.path == "starter"
    assert [Path(file) for file in config.data.train] == [SAMPLE / "train.jsonl"]
    assert to_conversation(next(iter(read_rows(SAMPLE / "train.jsonl")))).messages[-1].trained


def test_exact_match_is_strict() -> None:
    rows = [HeldOutRow((("user", "a cup"),), '{"items":{"cup":1}}')] * 4
    answers = ['{"items":{"cup":1}}\n', '{"items": {"cup": 1}}', 'Sure: {"items":{"cup":1}}', ""]
    assert [is_exact(answer, row.expected) for answer, row in zip(answers, rows, strict=True)] == [
        True, False, False, False]
    assert exact_match(answers, rows) == 0.25
    with pytest.raises(ValueError, match="nothing"):
        exact_match([], [])
