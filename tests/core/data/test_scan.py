"""The jobs behind the Data page: measuring a dataset, and showing rows with what is learned in them."""

import json
from pathlib import Path

import pytest

from core import jobs
from core.config import DataConfig, ModelConfig, RunConfig
from core.control import Control
from core.data import preview, scan
from core.data.preview import preview_rows
from core.data.scan import scan_dataset
from core.errors import DataError, ModelError
from core.events import DataScanned, Note, Progress, Result, RowsPrepared, from_json, to_json

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def config(model: Path, *files: Path | str, **data) -> RunConfig:
    return RunConfig(model=ModelConfig(path=str(model)), data=DataConfig(train=tuple(map(str, files)), **data))


def scanned(run: RunConfig) -> DataScanned:
    *events, found, result = scan_dataset(jobs.ScanData(run), Control())
    assert all(isinstance(event, Progress) for event in events)
    assert isinstance(found, DataScanned) and isinstance(result, Result)
    assert from_json(to_json(found)) == found
    assert result.values["rows"] == found.rows
    return found


def previewed(run: RunConfig, warm=None, **choice) -> RowsPrepared:
    events = list(preview_rows(jobs.PreviewRows(run, **choice), Control(), warm))
    found = next(event for event in events if isinstance(event, RowsPrepared))
    assert from_json(to_json(found)) == found
    return found


def write(tmp_path: Path, content: str, name: str = "rows.jsonl") -> Path:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    return file


def pairs(count: int) -> str:
    return "\n".join(json.dumps({"prompt": f"Question {n}?", "completion": f"Antwort {n} 日本"}) for n in range(count))


def test_counts_and_histogram(tiny_model, tmp_path):
    file = write(tmp_path, pairs(50) + "\n" + json.dumps({"prompt": "x " * 200, "completion": "y"}))
    found = scanned(config(tiny_model, file, max_length=128))
    assert (found.format, found.rows, found.rows_cut, found.rows_without_supervision) == (
        "prompt and completion", 51, 1, 1)
    assert sum(found.length_counts) == 51 and found.length_counts[-1] == 1
    assert found.longest > 200 and found.problems == ()
    assert 0 < found.supervised_tokens < found.tokens
    everything = scanned(config(tiny_model, file, max_length=128, train_on="all"))
    assert everything.supervised_tokens == everything.tokens - 51


def test_problems_are_listed_with_file_and_line(tiny_model, tmp_path):
    lines = pairs(3).split("\n")
    file = write(tmp_path, "\n".join([lines[0], "{oops", lines[1], '{"x": 1}', '{"text": "t"}', lines[2]]))
    found = scanned(config(tiny_model, file))
    assert found.rows == 3
    assert [problem.split(":")[0] for problem in found.problems] == [f"rows.jsonl, line {n}" for n in (2, 4, 5)]
    assert "found: x" in found.problems[1] and "instruction/input/output" in found.problems[1]
    many = write(tmp_path, "\n".join(['{"x": 1}'] * 100), "many.jsonl")
    found = scanned(config(tiny_model, many))
    assert found.rows == 0 and found.length_counts == (0,) * scan.HISTOGRAM_BINS
    assert len(found.problems) == scan.PROBLEMS_LISTED + 1 and found.problems[-1] == "80 more rows can not be used."


def test_files_that_can_not_be_read_are_problems(tiny_model, tmp_path):
    for file, words in ((tmp_path / "gone.jsonl", "does not exist"), (write(tmp_path, "", "e.jsonl"), "is empty")):
        found = scanned(config(tiny_model, file))
        assert found.rows == 0 and words in found.problems[0]
    assert "No training file" in scanned(config(tiny_model)).problems[0]
    found = scanned(config(tiny_model, write(tmp_path, '{"prompt": "q", "completion": ""}')))
    assert found.rows_without_supervision == 1 and "No row has a token to learn" in found.problems[0]
    with pytest.raises(ModelError):
        scanned(config(tmp_path / "nowhere", tmp_path / "x"))


def test_a_row_as_bubbles_and_tokens(tiny_model, tmp_path):
    run = config(tiny_model, write(tmp_path, pairs(5)))
    found = previewed(run, first=2)
    assert found.total_rows == 5 and len(found.rows) == 1
    row = found.rows[0]
    assert row.index == 2 and not row.cut
    assert [(message.role, message.content, message.trained) for message in row.messages] == [
        ("user", "Question 2?", False), ("assistant", "Antwort 2 日本", True)]
    text = "".join(token.text for token in row.tokens)
    assert text == ("<|im_start|>user\nQuestion 2?<|im_end|>\n<|im_start|>assistant\nAntwort 2 日本<|im_end|>\n")
    assert "".join(token.text for token in row.tokens if token.trained) == "Antwort 2 日本<|im_end|>"
    assert [token.text for token in row.tokens if token.special] == ["<|im_start|>", "<|im_end|>"] * 2
    assert previewed(config(tiny_model, *run.data.train, train_on="all")).rows[0].messages[0].trained


def test_ranges_and_search(tiny_model, tmp_path):
    run = config(tiny_model, write(tmp_path, pairs(30)))
    warm: dict = {}
    assert [row.index for row in previewed(run, warm, first=28, count=10).rows] == [28, 29]
    assert previewed(run, warm, first=99).rows == ()
    found = previewed(run, warm, first=1, count=2, search="QUESTION 2")
    assert found.total_rows == 11 and [row.index for row in found.rows] == [20, 21]
    assert previewed(run, warm, search="nowhere").total_rows == 0
    table = warm["data.rows"][1]
    previewed(run, warm, first=3)
    assert warm["data.rows"][1] is table
    write(tmp_path, pairs(31))
    assert previewed(run, warm).total_rows == 31


def test_texts_are_shown_piece_by_piece(tiny_model, tmp_path):
    text = " ".join(f"word{n} 日本" for n in range(400))
    run = config(tiny_model, write(tmp_path, text, "book.txt"), max_length=64)
    rows = previewed(run, count=1000).rows
    assert len(rows) == scanned(run).rows > 20
    assert [row.index for row in rows] == list(range(len(rows)))
    assert "".join(row.messages[0].content for row in rows).startswith("word0 日本 word1")
    assert rows[3].messages[0].role == "text" and rows[3].messages[0].trained
    assert "".join(token.text for row in rows for token in row.tokens).replace("<|im_end|>", "").count("日") >= 400
    found = previewed(run, search="word399", count=5)
    assert found.total_rows == 1 and found.rows[0].index == len(rows) - 1


def test_rows_that_a_run_refuses_are_not_shown(tiny_model, tmp_path):
    run = config(tiny_model, write(tmp_path, "{oops\n" + pairs(2)))
    assert previewed(run).total_rows == 2
    with pytest.raises(DataError, match="does not exist"):
        previewed(config(tiny_model, tmp_path / "gone"))


def test_the_preview_of_a_long_file_ends_early_and_says_so(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(preview, "PREVIEW_BYTES", 1000)
    run = config(tiny_model, write(tmp_path, pairs(600)))
    events = list(preview_rows(jobs.PreviewRows(run), Control()))
    assert any(isinstance(event, Note) for event in events)
    assert previewed(run).total_rows == 256


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data with published datasets is absent")
def test_a_published_file_through_both_jobs(tiny_model):
    run = config(tiny_model, DATA / "glaive_toolcall_en_demo.json", max_length=8192)
    found = scanned(run)
    assert found.rows == 300 and found.format == "ShareGPT" and not found.problems
    row = previewed(run, search="search_recipes").rows[0]
    said = "".join(token.text for token in row.tokens if token.trained)
    assert all(message.content in said for message in row.messages if message.role == "assistant")
