"""A large dataset: every row is read and checked, a sample stands for the rest, any row can be shown."""

import codecs
import json
import random
from pathlib import Path

import pytest

from core import jobs
from core.config import DataConfig, ModelConfig, RunConfig
from core.control import Control
from core.data import outline, preview, scan
from core.data.formats import read_conversations
from core.data.outline import Outline, outline_files
from core.data.preview import preview_rows
from core.data.scan import scan_dataset
from core.errors import DataError
from core.events import DataScanned, Note, RowsPrepared

ROWS = [
    {"prompt": "q", "completion": "a"}, {"completion": "a", "prompt": "q"}, {"prompt": "q", "completion": None},
    {"prompt": ["x"], "completion": "a"}, {"prompt": "q", "completion": "a", "n": 1.5},
    {"Prompt": "q", "completion": "a"},
    {"instruction": "i", "output": "o"}, {"instruction": "i", "output": "o", "history": "no list"},
    {"instruction": "i", "output": "o", "history": ""}, {"text": "t"}, {"text": 1}, {"other": "x"}, "text", 7,
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "nobody", "content": "a"}]},
    {"messages": [{"role": "user", "content": "q"}, {"from": "gpt", "value": "a"}]},
    {"messages": [{"role": "user", "content": ["q"]}, {"role": "assistant", "content": None}]},
    {"messages": [{"role": "user", "content": "q", "weight": 3}]}, {"messages": []}, {"messages": "m", "text": "t"},
    {"messages": [{"role": "user", "content": "q"}], "text": "t"},
    {"messages": [{"role": "user", "content": "q"}], "tools": "5"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}], "tools": "[]"},
    {"conversations": [{"from": "human", "value": "q"}], "system": "s"}, {"conversations": None, "text": "t"},
]
BROKEN = ['{"prompt": "q", "prompt": "q", "completion": "a"}', "{oops", '{"prompt": NaN, "completion": "a"}', "", "  "]


def write(tmp_path: Path, lines: list[str], name: str = "rows.jsonl", mark: bytes = b"") -> Path:
    (tmp_path / name).write_bytes(mark + "\n".join(lines).encode())
    return tmp_path / name


def pairs(count: int) -> list[str]:
    return [json.dumps({"prompt": f"Question {n}?", "completion": f"answer {n} " * (1 + n % 7)}) for n in range(count)]


def config(model: Path, *files: Path, **data) -> RunConfig:
    return RunConfig(model=ModelConfig(path=str(model)), data=DataConfig(train=tuple(map(str, files)), **data))


def scanned(run: RunConfig, seconds: float = 0.0, warm: dict | None = None) -> DataScanned:
    return next(event for event in scan_dataset(jobs.ScanData(run, seconds), Control(), warm)
                if isinstance(event, DataScanned))


def read_plainly(file: Path) -> tuple[int, dict[str, None], list[str]]:
    """Rows, formats and errors, as a run finds them."""
    errors: list[DataError] = []
    found = list(read_conversations(file, errors.append))
    return len(found), dict.fromkeys(row.format for row in found), [error.message for error in errors]


@pytest.mark.parametrize("seed", range(60))
def test_no_row_is_judged_otherwise_than_by_a_run(tmp_path, seed):
    choice = random.Random(seed)
    kinds = choice.sample([*map(json.dumps, ROWS), *BROKEN], choice.randint(1, 8))
    file = write(tmp_path, [choice.choice(kinds) for _ in range(60)])
    found, errors = Outline(), []
    try:
        expected = read_plainly(file)
    except DataError as error:
        with pytest.raises(DataError, match=r"can not|does not|no rows"):
            list(outline_files((str(file),), found, errors.append))
        assert error.message
        return
    list(outline_files((str(file),), found, errors.append))
    assert (found.rows, found.formats, [error.message for error in errors]) == expected


@pytest.mark.parametrize(("lines", "name"), [
    (pairs(300), "rows.jsonl"), (["prompt,completion", *(f"q {n},answer {n}" for n in range(300))], "rows.csv"),
    ([json.dumps({"text": "word " * (n % 90)}) for n in range(1, 300)], "texts.jsonl"),
    ([" ".join(f"word{n}" for n in range(30_000))], "book.txt")])
def test_where_the_sample_is_all_the_figures_are_the_exact_ones(tiny_model, tmp_path, monkeypatch, lines, name):
    run = config(tiny_model, write(tmp_path, lines, name), max_length=64)
    exact = scanned(run)
    monkeypatch.setattr(scan, "EXACT_BYTES", 0)
    found = scanned(run)
    assert exact.sampled == 0 and found.sampled > 0 and found.measured == exact.measured == 1
    assert found == DataScanned(**{**vars(exact), "sampled": found.sampled})


def test_a_sample_stands_for_all_rows(tiny_model, tmp_path, monkeypatch):
    lines = [*pairs(2000), "{oops", json.dumps({"prompt": "x " * 900, "completion": "y"})]
    run = config(tiny_model, write(tmp_path, lines), max_length=128)
    exact = scanned(run)
    monkeypatch.setattr(scan, "EXACT_BYTES", 0)
    monkeypatch.setattr(outline, "SAMPLE_ROWS", 100)
    found = scanned(run)
    assert 100 <= found.sampled < 200
    assert (found.rows, found.format, found.problems) == (2001, exact.format, exact.problems)
    assert found.longest == exact.longest
    assert abs(found.tokens / exact.tokens - 1) < 0.05
    assert abs(found.supervised_tokens / exact.supervised_tokens - 1) < 0.05
    assert abs(sum(found.length_counts) / 2001 - 1) < 0.02


@pytest.mark.parametrize("exact_bytes", [0, 10**6])
def test_a_scan_in_slices_ends_with_the_same_figures(tiny_model, tmp_path, monkeypatch, exact_bytes):
    monkeypatch.setattr(scan, "EXACT_BYTES", exact_bytes)
    monkeypatch.setattr(outline, "BLOCK_ROWS", 100)
    file = write(tmp_path, pairs(1000))
    run, warm, slices = config(tiny_model, file), {}, []
    while not slices or slices[-1].measured < 1:
        slices.append(scanned(run, 1e-9, warm))
    assert len(slices) > 4 and slices[0].format == "prompt and completion" and slices[0].problems == ()
    assert [part.measured for part in slices] == sorted(part.measured for part in slices)
    assert slices[-1] == scanned(run)
    scanned(run, 1e-9, warm)
    write(tmp_path, pairs(5))  # another file under the name is another scan
    assert scanned(run, 0, warm).rows == 5


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_any_row_can_be_shown_once_all_are_read(tiny_model, tmp_path, monkeypatch, mark):
    monkeypatch.setattr(scan, "EXACT_BYTES", 0)
    monkeypatch.setattr(preview, "PREVIEW_BYTES", 1000)
    lines = pairs(1000)
    run = config(tiny_model, write(tmp_path, [*lines[:600], "{oops", *lines[600:]], mark=mark),
                 write(tmp_path, pairs(50), "more.jsonl"))
    warm: dict = {}

    def shown(first: int, search: str = "") -> tuple[RowsPrepared, bool]:
        events = list(preview_rows(jobs.PreviewRows(run, first, 2, search), Control(), warm))
        return next(event for event in events if isinstance(event, RowsPrepared)), any(
            isinstance(event, Note) for event in events)

    before, noted = shown(0)
    assert before.total_rows == 256 and noted
    scanned(run, 0, warm)
    for first, question in ((0, 0), (599, 599), (600, 600), (999, 999), (1000, 0), (1049, 49)):
        found, noted = shown(first)
        assert found.total_rows == 1050 and not noted
        assert found.rows[0].index == first and found.rows[0].messages[0].content == f"Question {question}?"
        assert found.rows[0].tokens
    assert shown(1050)[0].rows == ()
    found, noted = shown(0, "question 99")
    assert found.total_rows == 1 and noted
    write(tmp_path, pairs(2), "more.jsonl")
    assert shown(0)[1]


def test_what_is_kept_of_a_large_file_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(outline, "SAMPLE_BYTES", 5000)
    monkeypatch.setattr(outline, "LARGE_BYTES", 500)
    lines = [json.dumps({"prompt": "q", "completion": "a" * (n if n % 50 else 2000)}) for n in range(1, 400)]
    found = Outline()
    list(outline_files((str(write(tmp_path, lines)),), found, pytest.fail))
    assert found.rows == 399
    assert sum(len(row.raw) for row in found.spread) < 3 * 5000
    large = [row for row in found.special if len(row.raw) > 500]
    assert len(large) == 1
