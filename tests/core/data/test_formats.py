"""The layouts of rows, and what is said about rows of no known layout."""

import json
from pathlib import Path

import pytest

from core.data.formats import Conversation, read_conversations, to_conversation
from core.data.readers import RawRow
from core.errors import DataError
from core.records import Message

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def converted(value) -> Conversation:
    return to_conversation(RawRow(Path("rows.jsonl"), 7, value))


def turns(value) -> list[tuple[str, str, bool]]:
    return [(message.role, message.content, message.trained) for message in converted(value).messages]


QUESTION, ANSWER = ("user", "q", False), ("assistant", "a", True)


@pytest.mark.parametrize(("value", "name", "expected"), [
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
     "chat messages", [QUESTION, ANSWER]),
    ({"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]},
                   {"role": "assistant", "content": ["a"]}]},
     "chat messages", [("system", "s", False), QUESTION, ANSWER]),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0},
                   {"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss_weight": 1.0}]},
     "chat messages", [QUESTION, ("assistant", "a", False), QUESTION, ANSWER]),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
     "ShareGPT", [("system", "s", False), QUESTION, ANSWER]),
    ({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
     "chat messages", [QUESTION, ANSWER]),
    ({"instruction": "q", "input": "", "output": "a"}, "alpaca", [QUESTION, ANSWER]),
    ({"instruction": "q", "input": None, "output": "a"}, "alpaca", [QUESTION, ANSWER]),
    ({"instruction": "q", "input": "x", "output": "a", "system": "s", "history": [["q", "a"]]}, "alpaca",
     [("system", "s", False), QUESTION, ANSWER, ("user", "q\n\nx", False), ANSWER]),
    ({"instruction": "q", "context": "x", "response": "a", "category": "c"}, "alpaca",
     [("user", "q\n\nx", False), ANSWER]),
    ({"prompt": "q", "completion": "a"}, "prompt and completion", [QUESTION, ANSWER]),
    ({"Prompt": "q", "Response": "a", "id": 3}, "prompt and completion", [QUESTION, ANSWER]),
    ({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
     "prompt and completion", [QUESTION, ANSWER]),
    ({"question": "q", "answer": "a"}, "question and answer", [QUESTION, ANSWER]),
    ({"input": "q", "output": "a"}, "question and answer", [QUESTION, ANSWER]),
    ({"text": "t"}, "plain text", [("text", "t", True)]),
    ("t", "plain text", [("text", "t", True)]),
    ({"prompt": "q", "completion": "  "}, "prompt and completion", [QUESTION, ("assistant", "  ", False)]),
])
def test_layouts(value, name, expected):
    assert converted(value).format == name
    assert turns(value) == expected


@pytest.mark.parametrize(("value", "words"), [
    ({"foo": 1, "bar": 2}, "the columns are not known (found: bar, foo)"),
    ({}, "found: none"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preferences"),
    ({"messages": []}, "the conversation is empty"),
    ({"messages": ["x"]}, "message 1 must be an object, not a text"),
    ({"messages": [{"content": "x"}]}, "message 1 has no role"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown role 'wizard'"),
    ({"messages": [{"role": "user", "content": 3}]}, "content of message 1 must be a text, not a number"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "'image_url'"),
    ({"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}, "must be 0 or 1"),
    ({"messages": [{"role": "assistant", "content": "x", "weight": [1]}]}, "must be 0 or 1"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "no function name"),
    ({"prompt": "q", "completion": 3}, "the column answer must be a text, not a number"),
    ({"instruction": "q", "output": ["a"]}, "the column output must be a text, not a list"),
    ({"instruction": "q", "output": "a", "history": [["q"]]}, "history"),
    ({"conversations": [{"from": "human", "value": "q"}], "tools": 3}, "tools must be a list"),
])
def test_what_is_wrong_is_said(value, words):
    with pytest.raises(DataError) as caught:
        converted(value)
    assert caught.value.message.startswith("rows.jsonl, line 7: ")
    assert words in caught.value.message
    if "columns" in words:
        assert "instruction/input/output" in caught.value.hint


def test_tool_calls_of_both_kinds():
    call = {"name": "add", "arguments": {"a": 1}}
    share = converted({"tools": json.dumps([{"name": "add"}]), "conversations": [
        {"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "2"}, {"from": "gpt", "value": "a"}]})
    assert [message.role for message in share.messages] == ["user", "assistant", "tool", "assistant"]
    assert share.messages[1].trained and json.loads(share.messages[1].content) == call
    assert share.calls[1].functions == (call,) and share.calls[1].said == ""
    assert share.tools == ({"type": "function", "function": {"name": "add"}},)
    open_ai = converted({"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "content": "2"}]})
    assert open_ai.calls[1].functions == (call,) and open_ai.calls[1].said == "Let me see."
    assert open_ai.messages[1].content == 'Let me see.\n{"name": "add", "arguments": {"a": 1}}'
    assert open_ai.messages[1].trained


def test_a_file_keeps_to_one_format(tmp_path):
    file = tmp_path / "mixed.jsonl"
    file.write_text('{"prompt": "q", "completion": "a"}\n\n{"text": "t"}\n')
    with pytest.raises(DataError, match=r"mixed\.jsonl, line 3: this row is plain text, but the rows before"):
        list(read_conversations(file))
    found: list[DataError] = []
    assert len(list(read_conversations(file, found.append))) == 1 and len(found) == 1


def test_a_long_text_comes_in_parts(tmp_path):
    text = "word " * 20_000
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "short"}))
    parts = list(read_conversations(file))
    assert "".join(part.messages[0].content for part in parts[:-1]) == text
    assert [part.continues for part in parts] == [True] * (len(parts) - 2) + [False, False]
    assert parts[0].messages[0] == Message("text", parts[0].messages[0].content, trained=True)


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data with published datasets is absent")
@pytest.mark.parametrize(("name", "rows", "layout"), [
    ("alpaca_en_demo.json", 999, "alpaca"), ("alpaca_zh_demo.json", 1000, "alpaca"), ("identity.json", 91, "alpaca"),
    ("glaive_toolcall_en_demo.json", 300, "ShareGPT"), ("v1_sft_demo.jsonl", 500, "chat messages"),
    ("c4_demo.jsonl", 301, "plain text"), ("wiki_demo.txt", 41, "plain text")])
def test_published_files(name, rows, layout):
    found = list(read_conversations(DATA / name))
    assert len(found) == rows
    assert {conversation.format for conversation in found} == {layout}
    assert all(any(message.trained for message in conversation.messages) for conversation in found)
    if name.startswith("glaive"):
        assert sum(len(conversation.calls) for conversation in found) == 211
        assert all(conversation.tools for conversation in found if conversation.calls)
