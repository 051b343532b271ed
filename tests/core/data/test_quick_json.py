"""The quick parser gives what the strict one gives, or leaves it to that one."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import json_rows
from core.data.json_rows import MAX_DEPTH, parse_row
from core.data.quick_json import UNSURE, quick_value
from core.errors import DataError

FILE = Path("rows.jsonl")
TRICKY = ["\\u0022", '"', "\\", ":", '":', '" :', "\\u0000", "\0", "é", "\ud800", "😀", "a", " ", "\n", "{", "1"]
texts = st.lists(st.sampled_from(TRICKY), max_size=6).map("".join)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | texts,
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
                      max_leaves=8)


def strictly(raw: bytes, monkeypatch: pytest.MonkeyPatch):
    """The strict parser's value, or its words."""
    with monkeypatch.context() as patch:
        patch.setattr(json_rows, "quick_value", lambda raw, depth: UNSURE)
        try:
            return parse_row(raw, FILE, 1)
        except DataError as error:
            return error.message


@settings(max_examples=300, deadline=None)
@given(values, st.booleans(), st.sampled_from([None, (" ,", " :"), (",", ":"), (",", "\t: ")]))
def test_what_is_certain_is_what_the_strict_parser_says(value, ascii_only, separators):
    raw = json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode("utf-8", "surrogatepass")
    found = quick_value(raw, MAX_DEPTH)
    with pytest.MonkeyPatch.context() as patch:
        strict = strictly(raw, patch)
    assert found is UNSURE or (repr(found) == repr(strict))


@pytest.mark.parametrize("raw", [
    b'{"a": 1, "a": 2}', b'{"a" : 1, "a": 2}', b'{"a" :1,"b": ":", "a":1}', b'{"a\\\\": 1, "a\\\\": 2, "b": "\\":"}',
    b'{"a": 123456789012345678901234}', b'{"a": "x\\u0000"}', b'{"a": 1.0}', b'{"a": NaN}', b'{"a": "\\ud800"}',
    b'{"a": 1, "b": "\\u0022\\u0022", "a": 1, "c": "\\""}',
    b'{"a": "\xed\xa0\x80"}', b'{"a": "x\0"}', b'{"a":' + b"[" * 63 + b"1" + b"]" * 63 + b"}",
    b'{"b": [{"a": 1, "a": 2}]}'])
def test_what_is_left_to_the_strict_parser(raw):
    assert quick_value(raw, MAX_DEPTH) is UNSURE


@pytest.mark.parametrize("value", [
    {"instruction": 'say "yes": now', "input": "", "output": "é\n😀"},
    {"messages": [{"role": "user", "content": "x:y"}]},
    {"a": [1, None, True, {"b": {}}]}, "text", 2**64 - 1])
def test_usual_rows_are_certain(value):
    for ascii_only in (True, False):
        assert quick_value(json.dumps(value, ensure_ascii=ascii_only).encode(), MAX_DEPTH) == value
