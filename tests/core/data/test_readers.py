"""Every way in which a file can be wrong is one plain sentence with file and line; good files come as a stream."""

import json
import os
from pathlib import Path

import pytest
from traced import traced

from core.data import source
from core.data.readers import TEXT_BLOCK_CHARACTERS, read_rows
from core.errors import DataError, describe

GOOD = '{"prompt": "a", "completion": "b"}'


def write(tmp_path: Path, content: bytes | str, name: str = "rows.jsonl") -> Path:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def values(file: Path) -> list:
    return [row.value for row in read_rows(file)]


@pytest.mark.parametrize(("bad", "words"), [
    (b'{"a": NaN}', "NaN"),
    (b'{"a": -Infinity}', "-Infinity"),
    (b'{"a": 1e999}', "too large"),
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' occurs twice"),
    (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested"),
    (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested more than 64 deep"),
    (b'{"a": ' + b"7" * 5000 + b"}", "5,000 digits"),
    (b'{"a": "\\ud800"}', "lone surrogate"),
    (b'{"\\udc00": 1}', "lone surrogate"),
    (b'{"a": "x\\u0000y"}', "NUL"),
    (b'{"a": "x\0y"}', "NUL byte"),
    (b'{"a": "\xc4\xe3\xba\xc3"}', "not UTF-8"),  # GBK
    (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),  # a surrogate as bytes
    (b'{"a": "x}', "not valid JSON"),
    (b'{"a": 1,}', "not valid JSON"),
    (b'{"a": 1} {"b": 2}', "not valid JSON"),
    (b"[1, 2]", "must be a JSON object, not a list"),
    (b"17", "must be a JSON object, not a number"),
    (b"null", "must be a JSON object, not null"),
])
def test_a_bad_line_is_named(tmp_path, bad, words):
    file = write(tmp_path, f"{GOOD}\n\n".encode() + bad + b"\n" + GOOD.encode())
    with pytest.raises(DataError) as caught:
        values(file)
    assert caught.value.message.startswith("rows.jsonl, line 3: ")
    assert words in caught.value.message
    assert "\n" not in caught.value.message and len(caught.value.message) < 200
    assert describe(caught.value).message == caught.value.message


def test_the_same_faults_inside_an_array(tmp_path):
    file = write(tmp_path, '[\n' + GOOD + ',\n{"a":\n NaN},\n' + GOOD + "]", "rows.json")
    with pytest.raises(DataError, match=r"rows\.json, line 3: NaN"):
        values(file)
    file = write(tmp_path, '[\n' + GOOD + ',\n{"a":\n oops},\n' + GOOD + "]", "rows.json")
    with pytest.raises(DataError, match=r"rows\.json, line 4: this is not valid JSON"):
        values(file)


def test_reading_goes_on_after_a_reported_row(tmp_path):
    for content, name in ((f"{GOOD}\nx\n{GOOD}\n3\n{GOOD}", "rows.jsonl"),
                          (f"[{GOOD},\nx,{GOOD},\n3,{GOOD}]", "a.json"),
                          ("prompt,completion\na,b\nc\nd,e", "a.csv")):
        found: list[DataError] = []
        rows = list(read_rows(write(tmp_path, content, name), found.append))
        assert len(rows) >= 2 and found
        assert all("line" in error.message for error in found)


@pytest.mark.parametrize(("content", "words"), [
    ('[{"a": 1}, {"b": 2', "line 1: the file ends in the middle of this row"),
    ('[{"a": 1},\n\n {"b": "2', "line 3: the file ends in the middle of this row"),
    ('[{"a": 1},, {"b": 2}]', "line 1: a row is missing beside a comma"),
    ('[{"a": 1},\n]', "line 2: a row is missing beside a comma"),
    ('[{"a": 1}]\n[{"a": 2}]', "line 2: there is text after the end of the list"),
    ('{\n"rows": [{"a": 1}]\n}', 'without a list of rows called "data"'),
    ("[]", "holds no rows"),
    ("  \n ", "holds no rows"),
    ("plain words", "does not begin with"),
])
def test_a_broken_list_is_named(tmp_path, content, words):
    with pytest.raises(DataError) as caught:
        values(write(tmp_path, content, "rows.json"))
    assert words in caught.value.message


@pytest.mark.parametrize("content", [
    '[{"a": 1}, {"b": "x, [y] {z} \\" \\\\"}]',
    '{"data": [{"a": 1}, {"b": "x, [y] {z} \\" \\\\"}]}',
    '{\n "version": "1, [2]: {",\n "other": [[1], {"data": [7]}],\n "data": [\n{"a": 1},\n'
    '{"b": "x, [y] {z} \\" \\\\"}\n], "x": [1]}',
    '{"a": 1}\r\n\r\n{"b": "x, [y] {z} \\" \\\\"}\r\n',
    '{"a": 1}\n{"b": "x, [y] {z} \\" \\\\"}',
])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows", "rows.txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_in_every_shape_name_and_encoding(tmp_path, content, name, encoding):
    assert values(write(tmp_path, content.encode(encoding), name)) == [{"a": 1}, {"b": 'x, [y] {z} " \\'}]


def test_blocks_may_cut_anywhere(tmp_path, monkeypatch):
    rows = [{"a": "x\\\"[{,}]" * (n % 7), "b": [n, {"c": "日本"}]} for n in range(40)]
    files = [write(tmp_path, json.dumps(rows, indent=n, ensure_ascii=bool(n)), f"rows{n}.json") for n in (0, 1)]
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr("core.data.json_rows.HEAD_BYTES", size)
        for file in files:
            assert values(file) == rows


def test_lines_of_rows_are_counted(tmp_path):
    file = write(tmp_path, '[\n\n{"a": 1},\n{"b":\n2}\n,\n{"c": 3}]', "rows.json")
    assert [row.line for row in read_rows(file)] == [3, 4, 7]
    file = write(tmp_path, 'prompt,completion\n"a\nb",c\n\nd,e\n', "rows.csv")
    assert [row.line for row in read_rows(file)] == [2, 5]
    file = write(tmp_path, '{"a": "x\u2028y\u0085z"}\n{"b": 1}\n')  # line ends to str.splitlines, not to us
    assert [(row.line, row.value) for row in read_rows(file)] == [(1, {"a": "x\u2028y\u0085z"}), (2, {"b": 1})]
    file = write(tmp_path, '{"a": "x\u2028y"}\n{"b": 1}\n'.encode("utf-16"))
    assert [row.line for row in read_rows(file)] == [1, 2]


def test_utf16_without_mark_and_torn_utf16(tmp_path):
    with pytest.raises(DataError, match="NUL byte"):
        values(write(tmp_path, GOOD.encode("utf-16-le")))
    with pytest.raises(DataError, match="begins as UTF-16"):
        values(write(tmp_path, b"\xff\xfe" + b"\x00\xd8" + GOOD.encode("utf-16-le")))


def test_tables(tmp_path):
    rows = [{"prompt": "a, b", "completion": 'say "x"\nand y'}, {"prompt": "ä", "completion": ""}]
    for mark, name in ((",", "rows.csv"), (";", "rows.csv"), ("\t", "rows.tsv"), ("\t", "rows"), (",", "rows.data")):
        text = f'prompt{mark}completion\r\n"a, b"{mark}"say ""x""\nand y"\r\nä{mark}\r\n'
        assert values(write(tmp_path, text, name)) == rows
    for text, words in (("prompt,completion\na\n", "line 2: 1 cells"), ("a,a\n1,2\n", "name every column once"),
                        ('prompt,completion\n"a,b\n', "line 2: this table row can not be read"),
                        ("prompt,completion\nx\0,b\n", "line 2: there is a NUL byte"),
                        ("prompt,completion\n", "holds no rows")):
        with pytest.raises(DataError) as caught:
            values(write(tmp_path, text, "rows.csv"))
        assert words in caught.value.message


def test_a_table_cell_may_be_long(tmp_path):
    assert values(write(tmp_path, "prompt,completion\na," + "b" * 300_000, "r.csv"))[0]["completion"] == "b" * 300_000


def test_text_is_one_document_in_blocks(tmp_path):
    text = "".join(f"Line {n} of a long text.\r\n" for n in range(5000)) + "wörd " * 20_000 + "x" * 90_000 + "\n\n"
    rows = list(read_rows(write(tmp_path, text, "book.md")))
    assert "".join(str(row.value) for row in rows) == text.replace("\r\n", "\n").rstrip()
    assert all(len(str(row.value)) <= TEXT_BLOCK_CHARACTERS for row in rows)
    assert [row.continues for row in rows] == [True] * (len(rows) - 1) + [False]
    assert rows[0].line == 1 and rows[-1].line == 5001
    assert rows[-1].offset == len(text.encode())
    blank_end = "x" * (TEXT_BLOCK_CHARACTERS - 1) + "\n" + " \n" * 40_000
    rows = list(read_rows(write(tmp_path, blank_end, "book.txt")))
    assert [row.continues for row in rows] == [False]


def test_markdown_may_begin_with_a_bracket(tmp_path):
    assert values(write(tmp_path, "[a link](x)\n", "notes.md")) == ["[a link](x)"]
    assert values(write(tmp_path, "{{name}} is here\n", "notes.txt")) == ["{{name}} is here"]


@pytest.mark.parametrize(("start", "words"), [
    (b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04", "zip"), (b"PAR1", "Parquet"), (b"%PDF-1.7", "PDF"), (b"GGUF", "model")])
def test_other_kinds_are_named(tmp_path, start, words):
    with pytest.raises(DataError, match=words) as caught:
        values(write(tmp_path, start + bytes(50)))
    assert "convert" in caught.value.hint


def test_files_that_are_none(tmp_path):
    for path, words in ((tmp_path / "gone.json", "does not exist"), (tmp_path, "is a folder"),
                        (write(tmp_path, b"", "empty.jsonl"), "is empty")):
        with pytest.raises(DataError, match=words):
            values(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="not an ordinary file"):
            values(tmp_path / "pipe")
    with pytest.raises(DataError, match="can not be opened"):
        values(tmp_path / ("x" * 300))


@pytest.mark.parametrize(("name", "start"), [
    ("a.jsonl", b'{"a": "'), ("a.json", b'[{"a": "'), ("a.json", b"[1"), ("a.csv", b'prompt,completion\na,"'),
    ("a.txt", b"")])
def test_an_endless_row_is_refused_in_bounded_memory(tmp_path, monkeypatch, name, start):
    limit = 2**20
    for module in ("source", "readers", "json_rows"):
        monkeypatch.setattr(f"core.data.{module}.ROW_LIMIT_BYTES", limit)
    file = tmp_path / name
    with open(file, "wb") as out:
        out.write(start)
        out.truncate(200 * limit)  # a hole: all NUL

    def refusal() -> str:
        with pytest.raises(DataError) as caught:
            values(file)
        return caught.value.message

    message, peak = traced(refusal)
    assert "longer than 1 MB" in message or "NUL" in message
    assert peak < 12 * limit


def test_memory_stays_flat_over_a_long_file(tmp_path):
    line = json.dumps({"text": "x" * 1000}) + "\n"
    for name, content in (("long.jsonl", line * 4_000), ("long.json", "[" + ",".join([line] * 4_000) + "]")):
        file = write(tmp_path, content, name)
        count, peak = traced(lambda file=file: sum(1 for _ in read_rows(file)))
        assert count == 4_000
        assert peak < 2**20, name


def test_limit_is_what_the_message_says():
    assert source.ROW_LIMIT_BYTES == 64 * 2**20
