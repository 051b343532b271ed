"""Rows of a run: what is kept, what is counted, and which side of the split it is on."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_models import build_tokenizer

from core.config import DataConfig
from core.control import Control
from core.data.prepare import PreparedData, prepare_rows, split
from core.data.row_store import digests_of
from core.data.template import EncodedRow
from core.errors import Cancelled, DataError
from core.events import Event, Progress, Warned

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
published = pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data with published datasets is absent")
TOKENIZER = build_tokenizer()


def prepared(data: DataConfig, seed: int = 0, control: Control | None = None) -> tuple[PreparedData, list[Event]]:
    events = []
    generator = prepare_rows(data, TOKENIZER, seed, control or Control())
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            return end.value, events


def write(tmp_path: Path, rows: list, name: str = "rows.jsonl") -> str:
    file = tmp_path / name
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def pair(question: str, answer: str) -> dict:
    return {"prompt": question, "completion": answer}


def keys(rows) -> list[bytes]:
    return [row.input_ids.tobytes() for row in rows]


def test_the_split_is_by_the_seed_and_keeps_the_order(tmp_path):
    file = write(tmp_path, [pair(f"question {n}", f"answer {n}") for n in range(100)])
    data = DataConfig(train=(file,), validation_fraction=0.1)
    first, events = prepared(data)
    assert len(first.train) == 90 and len(first.validation) == 10
    assert [row.index for row in first.train] == sorted(row.index for row in first.train)
    assert sorted([row.index for row in (*first.train, *first.validation)]) == list(range(100))
    assert keys(prepared(data)[0].validation) == keys(first.validation)
    assert keys(prepared(data, seed=1)[0].validation) != keys(first.validation)
    assert all(isinstance(event, Progress) and event.stage == "Preparing rows" for event in events)
    assert events[-1].done == events[-1].total == Path(file).stat().st_size
    assert len(prepared(DataConfig(train=(file,), validation_fraction=0.0))[0].validation) == 0


@pytest.mark.parametrize(("count", "fraction", "held_out"), [
    (1, 0.5, 0), (2, 0.01, 1), (3, 0.5, 2), (10, 0.05, 1), (30, 0.05, 2), (200, 0.05, 10)])
def test_how_many_rows_are_held_out(tmp_path, count, fraction, held_out):
    file = write(tmp_path, [pair(f"q{n}", f"a{n}") for n in range(count)])
    result = prepared(DataConfig(train=(file,), validation_fraction=fraction))[0]
    assert (len(result.train), len(result.validation)) == (count - held_out, held_out)


@pytest.mark.parametrize("seed", range(5))
def test_equal_rows_stay_on_one_side(tmp_path, seed):
    file = write(tmp_path, [pair(f"q{n % 13}", "a") for n in range(120)])
    result = prepared(DataConfig(train=(file,), validation_fraction=0.1), seed)[0]
    assert result.train and result.validation
    assert not set(keys(result.train)) & set(keys(result.validation))
    assert len(result.validation) <= 2 * 12
    same = write(tmp_path, [pair("q", "a")] * 9, "same.jsonl")
    assert len(prepared(DataConfig(train=(same,)), seed)[0].train) == 9


def test_a_validation_group_is_never_most_of_the_rows():
    rows = [EncodedRow(n, np.full(3, 1 if n < 90 else n, np.int32), np.ones(3, np.bool_), False, 3) for n in range(100)]
    for seed in range(20):
        train, validation = split(digests_of(rows), 0.05, seed)
        assert len(validation) <= 5 and len(train) >= 95


def plain_split(rows: list, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """What `split` must give, written in the simplest way."""
    groups: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.input_ids.tobytes(), []).append(number)
    if fraction <= 0 or len(groups) < 2:
        return list(range(len(rows))), []
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    held: set[int] = set()
    for members in order:
        if len(held) + len(members) <= max(1, round(fraction * len(rows))):
            held.update(members)
    held = held or set(min(order, key=len))
    return [n for n in range(len(rows)) if n not in held], sorted(held)


@pytest.mark.parametrize("kinds", [1, 2, 3, 40, 1000])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5])
def test_the_split_is_the_plain_one(kinds, fraction):
    for seed in range(10):
        choice = np.random.default_rng([seed, kinds])
        rows = [EncodedRow(n, np.full(2, choice.integers(kinds), np.int32), np.ones(2, np.bool_), False, 2)
                for n in range(1 + 20 * seed)]
        found = split(digests_of(rows), fraction, seed)
        assert [part.tolist() for part in found] == list(plain_split(rows, fraction, seed))


def test_rows_without_supervision_are_counted_once(tmp_path):
    rows = [pair("q", "a"), pair("x", ""), pair("long " * 50, "a"), pair("q", "b" * 200),
            {"prompt": "only", "completion": None}]
    result, events = prepared(DataConfig(train=(write(tmp_path, rows),), max_length=40, validation_fraction=0))
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert (len(result.train), result.dropped, result.cut) == (2, 3, 2)
    assert warnings == ["3 of 5 rows have no token to learn and are left out.",
                        "2 of 5 rows are longer than 40 tokens and are cut at the end."]
    assert [row.index for row in result.train] == [0, 3]


@pytest.mark.parametrize(("rows", "words"), [
    ([pair("long " * 50, "a")] * 3, "the limit of 40 tokens cuts off every answer"),
    ([pair("q", "")] * 3, "no answer of the assistant"),
    ([pair("q", ""), pair("long " * 50, "a")], "of 2 rows, 1 lose their answer"),
])
def test_nothing_to_learn_says_why(tmp_path, rows, words):
    with pytest.raises(DataError, match=words) as caught:
        prepared(DataConfig(train=(write(tmp_path, rows),), max_length=40))
    assert caught.value.hint


def test_files_are_read_in_their_order_and_errors_name_the_file(tmp_path):
    one, two = write(tmp_path, [pair("q", "a")]), write(tmp_path, [{"text": "words"}], "two.jsonl")
    assert len(prepared(DataConfig(train=(one, two), validation_fraction=0))[0].train) == 2
    with pytest.raises(DataError, match=r"three\.jsonl, line 1"):
        prepared(DataConfig(train=(one, write(tmp_path, [{"x": 1}], "three.jsonl"))))
    with pytest.raises(DataError, match="does not exist"):
        prepared(DataConfig(train=(one, str(tmp_path / "gone.jsonl"))))
    with pytest.raises(DataError, match="No training file"):
        prepared(DataConfig())


def test_stop_is_heard(tmp_path):
    control = Control()
    control.stop()
    with pytest.raises(Cancelled):
        prepared(DataConfig(train=(write(tmp_path, [pair("q", "a")]),)), control=control)


@published
@pytest.mark.parametrize("name", [
    "alpaca_en_demo.json", pytest.param("alpaca_zh_demo.json", marks=pytest.mark.full), "identity.json",
    "wiki_demo.txt", "glaive_toolcall_en_demo.json", "v1_sft_demo.jsonl", "c4_demo.jsonl"])
def test_published_files_give_rows(name):
    result, _ = prepared(DataConfig(train=(str(DATA / name),), max_length=4096))
    rows = (*result.train, *result.validation)
    assert len(rows) > 60 and result.validation
    assert all(row.supervised.any() and not row.supervised[0] and len(row) <= 4096 for row in rows)


@published
@pytest.mark.starter
def test_a_thousand_rows_are_ready_in_a_moment(starter_model):
    from core.models.load import load_tokenizer

    tokenizer = load_tokenizer(starter_model)
    start = time.process_time()  # of all cores: a busy machine does not make it longer
    for _ in prepare_rows(DataConfig(train=(str(DATA / "alpaca_en_demo.json"),)), tokenizer, 0, Control()):
        pass
    assert time.process_time() - start < 4
