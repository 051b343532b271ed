"""What is learned in a row, for the chat templates of many families: exactly what the model must say itself."""

import datetime
from pathlib import Path

import numpy as np
import pytest
from chat_templates import FAMILIES, byte_tokenizer, space_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import build_tokenizer

from core.data.formats import Conversation, ToolCalls
from core.data.template import CHAT_LIMIT_CHARACTERS, RowEncoder, encode, render_prompt
from core.errors import DataError
from core.records import Message

SYSTEM = Message("system", "Be brief.")
TALK = (Message("user", "What?"), Message("assistant", "Hello there", trained=True),
        Message("user", "And?"), Message("assistant", "Fox 日本.", trained=True))
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}
CALL_TALK = (Message("user", "2+2"), Message("assistant", '{"name": "add", "arguments": {"a": 1}}', trained=True),
             Message("tool", "4"), Message("assistant", "Four", trained=True))
CALL = {1: ToolCalls("", ({"name": "add", "arguments": {"a": 1}},))}

TOKENIZERS = {name: byte_tokenizer(name) for name in [*FAMILIES, ""]}


def conversation(*messages: Message, **more) -> Conversation:
    return Conversation(tuple(messages), Path("rows.jsonl"), 3, "chat messages", **more)


def learned(tokenizer, talk: Conversation, max_length: int = 4096) -> list[str]:
    """The texts of the runs of supervised tokens."""
    row = encode(talk, tokenizer, "answers", max_length)[0]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row.supervised, [False]]).astype(np.int8)))
    return [tokenizer.decode(row.input_ids[first:last]) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def whole(tokenizer, talk: Conversation) -> str:
    return tokenizer.decode(encode(talk, tokenizer, "answers", 4096)[0].input_ids)


@pytest.mark.parametrize(("family", "expected"), [
    ("smollm", ["Hello there<|im_end|>", "Fox 日本.<|im_end|>"]),
    ("llama3", ["Hello there<|eot_id|>", "Fox 日本.<|eot_id|>"]),
    ("llama31", ["Hello there<|eot_id|>", "Fox 日本.<|eot_id|>"]),
    ("mistral", [" Hello there</s>", " Fox 日本.</s>"]),
    ("gemma", ["Hello there<end_of_turn>", "Fox 日本.<end_of_turn>"]),
    ("qwen3", ["Hello there<|im_end|>", "<think>\n\n</think>\n\nFox 日本.<|im_end|>"]),
    ("phi3", ["Hello there<|end|>", "Fox 日本.<|end|>\n<|endoftext|>"]),
    ("vicuna", ["Hello there</s>", "Fox 日本.</s>"]),
    ("reasoner", ["Hello there<|end|>", "Fox 日本.<|end|>"]),
    ("", ["Hello there</s>", "Fox 日本.</s>"]),
])
def test_each_family_learns_its_answers_and_where_they_end(family, expected):
    tokenizer = TOKENIZERS[family]
    assert learned(tokenizer, conversation(SYSTEM, *TALK)) == expected
    assert learned(tokenizer, conversation(*TALK)) == expected
    assert "Be brief." in whole(tokenizer, conversation(SYSTEM, *TALK))
    untrained = (Message("assistant", "Hello there"), *TALK[2:])
    assert learned(tokenizer, conversation(TALK[0], *untrained)) == expected[1:]


@pytest.mark.parametrize("family", [*FAMILIES, ""])
def test_the_prompt_in_the_chat_is_what_the_row_begins_with(family):
    tokenizer = TOKENIZERS[family]
    if family == "reasoner":
        pytest.skip("its generation prompt opens a thought that its rendered answers do not show")
    for talk in ((SYSTEM, *TALK[:2]), TALK[:2], (Message("user", "a "), Message("assistant", "  b", trained=True))):
        row = encode(conversation(*talk), tokenizer, "answers", 4096)[0]
        prompt = render_prompt(talk[:-1], tokenizer)
        assert row.input_ids[:len(prompt)].tolist() == prompt
        assert not row.supervised[:len(prompt)].any()
        assert row.supervised[len(prompt)]


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(
    lambda text: "<|" not in text and text.strip())
talks = st.lists(st.tuples(words, words), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(talks)
def test_chatml_learns_exactly_answer_and_end(pairs):
    tokenizer = TOKENIZERS["smollm"]
    messages = [message for question, answer in pairs
                for message in (Message("user", question), Message("assistant", answer, trained=True))]
    assert learned(tokenizer, conversation(*messages)) == [f"{answer}<|im_end|>" for _, answer in pairs]


@settings(max_examples=40, deadline=None)
@given(talks, st.sampled_from([name for name in FAMILIES if name != "reasoner"]))
def test_every_family_learns_something_of_every_answer_and_nothing_else(pairs, family):
    tokenizer = TOKENIZERS[family]
    messages = [message for question, answer in pairs
                for message in (Message("user", question), Message("assistant", answer, trained=True))]
    item = RowEncoder(tokenizer, "answers", 4096).encode([conversation(*messages)])[0]
    runs = learned(tokenizer, conversation(*messages))
    assert len(runs) == len(pairs)
    for run, (_, answer) in zip(runs, pairs, strict=True):
        assert answer.strip() in run
    assert not item.row.supervised[0]
    assert tokenizer.decode(item.row.input_ids) == item.text


@pytest.mark.usefixtures("starter_model")
@pytest.mark.starter
def test_the_starter_learns_answer_and_end(starter_model):
    from core.models.load import load_tokenizer

    tokenizer = load_tokenizer(starter_model)
    assert learned(tokenizer, conversation(SYSTEM, *TALK)) == ["Hello there<|im_end|>", "Fox 日本.<|im_end|>"]
    row = encode(conversation(*TALK[:2]), tokenizer, "answers", 4096)[0]
    theirs = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in TALK[:2]], tokenize=True, return_dict=False)
    assert row.input_ids.tolist() == theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_rendering_equals_that_of_transformers(family, monkeypatch):
    tokenizer = TOKENIZERS[family]
    monkeypatch.setattr("core.data.sandbox._date", lambda pattern: datetime.datetime.now().strftime(pattern))
    plain = [{"role": message.role, "content": message.content} for message in TALK]
    assert whole(tokenizer, conversation(*TALK)) == tokenizer.apply_chat_template(plain, tokenize=False)
    assert render_prompt(TALK[:3], tokenizer) == tokenizer.apply_chat_template(
        plain[:3], add_generation_prompt=True, tokenize=True, return_dict=False)


@pytest.mark.parametrize(("family", "call"), [
    ("smollm", '{"name": "add", "arguments": {"a": 1}}<|im_end|>'),
    ("llama31", '{"name": "add", "parameters": {"a": 1}}<|eot_id|>'),
    ("qwen3", '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'),
    ("gemma", '{"name": "add", "arguments": {"a": 1}}<end_of_turn>'),
    ("mistral", ' {"name": "add", "arguments": {"a": 1}}</s>'),
    ("phi3", '{"name": "add", "arguments": {"a": 1}}<|end|>'),
    ("vicuna", '{"name": "add", "arguments": {"a": 1}}</s>'),
])
def test_tool_calls_are_learned_in_the_family_s_own_words(family, call):
    tokenizer = TOKENIZERS[family]
    talk = conversation(*CALL_TALK, calls=CALL, tools=(TOOL,))
    runs = learned(tokenizer, talk)
    assert runs[0] == call and "Four" in runs[1] and len(runs) == 2
    text = whole(tokenizer, talk)
    assert text.count("adds") == 1 and "4" in text
    assert text.index("adds") < text.index("Four")


def test_two_calls_in_a_turn_fall_back_to_text_where_the_template_knows_one():
    functions = ({"name": "add", "arguments": {}}, {"name": "sub", "arguments": {}})
    talk = conversation(CALL_TALK[0], Message("assistant", "CALLS", trained=True), *CALL_TALK[2:],
                        calls={1: ToolCalls("", functions)})
    assert learned(TOKENIZERS["llama31"], talk)[0] == "CALLS<|eot_id|>"


def test_neighbours_of_one_role_become_one_turn_where_roles_must_alternate():
    talk = conversation(Message("user", "one"), Message("user", "two"), *TALK[1:])
    assert "one\n\ntwo" in whole(TOKENIZERS["gemma"], talk)
    assert learned(TOKENIZERS["gemma"], talk)[0] == "Hello there<end_of_turn>"
    assert "one<|im_end|>" in whole(TOKENIZERS["smollm"], talk)
    bad = conversation(TALK[0], TALK[1], Message("assistant", "untrained"))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3: the model's chat template refuses this conversation: "):
        encode(bad, TOKENIZERS["gemma"], "answers", 4096)


def test_a_conversation_may_begin_with_the_assistant():
    talk = conversation(Message("assistant", "Welcome", trained=True), *TALK)
    for family, end in (("smollm", "<|im_end|>"), ("qwen3", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("", "</s>")):
        assert learned(TOKENIZERS[family], talk)[0] == f"Welcome{end}"


def test_thoughts_that_a_template_drops_are_not_learned_but_the_answer_is():
    thinking = Message("assistant", "<think>\nhm\n</think>\n\nYes", trained=True)
    runs = learned(TOKENIZERS["qwen3"], conversation(TALK[0], thinking, TALK[2], thinking))
    assert runs == ["Yes<|im_end|>", "<think>\nhm\n</think>\n\nYes<|im_end|>"]


def test_an_answer_that_can_not_be_found_is_refused():
    tokenizer = byte_tokenizer("smollm")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.revindex <= 2 %}{{ m.role + ': ' + m.content + '|' }}"
        "{% else %}{{ '[' + m.content | upper + messages | length | string + m.content | length | string + ']' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    with pytest.raises(DataError, match="line 3: the model's chat template changes answer 2 so that its place can not"):
        encode(conversation(*TALK), tokenizer, "answers", 4096)
    assert encode(conversation(*TALK), tokenizer, "all", 4096)[0].supervised.sum() > 10


def test_a_template_without_end_token_gets_one():
    tokenizer = byte_tokenizer("vicuna")
    tokenizer.chat_template = ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
                               "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}")
    assert learned(tokenizer, conversation(*TALK)) == [" Hello there", " Fox 日本.</s>"]
    assert encode(conversation(*TALK), tokenizer, "all", 4096)[0].input_ids[-1] == tokenizer.eos_token_id


def test_the_word_after_a_prompt_that_ends_with_a_space():
    tokenizer = TOKENIZERS["vicuna"]  # the tokenizer would join " Hello"
    assert "ĠHello" in tokenizer.convert_ids_to_tokens(tokenizer("ASSISTANT: Hello")["input_ids"])
    assert learned(tokenizer, conversation(*TALK[:2])) == ["Hello there</s>"]
    joining = space_tokenizer("vicuna")
    row = encode(conversation(*TALK[:2]), joining, "answers", 4096)[0]
    assert row.supervised[-1] and joining.decode(row.input_ids[row.supervised]).strip() in ("Hello there</s>", "</s>")


def test_end_is_learned_although_it_is_also_the_pad_token():
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    row = encode(conversation(*TALK), tokenizer, "answers", 4096)[0]
    assert (row.input_ids[row.supervised] == tokenizer.eos_token_id).sum() == 2


def test_one_begin_token_at_most():
    for family in ("llama3", "gemma", "mistral", ""):
        tokenizer = byte_tokenizer(family, adds_begin=True)
        for talk in (conversation(*TALK), conversation(Message("text", "Some text", trained=True))):
            ids = encode(talk, tokenizer, "answers", 4096)[0].input_ids
            assert ids[0] == tokenizer.bos_token_id
            assert (ids == tokenizer.bos_token_id).sum() == 1


def test_cut_rows_keep_what_is_before_the_limit():
    tokenizer = TOKENIZERS["smollm"]
    full = encode(conversation(*TALK), tokenizer, "answers", 4096)[0]
    first = int(np.flatnonzero(full.supervised)[0])
    for limit in (8, first, first + 1, len(full) - 1, len(full)):
        row = encode(conversation(*TALK), tokenizer, "answers", limit)[0]
        assert len(row) == min(limit, len(full)) and row.length == len(full)
        assert row.cut == (limit < len(full))
        assert row.input_ids.tolist() == full.input_ids[:limit].tolist()
        assert row.supervised.tolist() == full.supervised[:limit].tolist()
    assert row.input_ids.dtype == np.int32 and row.supervised.dtype == np.bool_


def test_learning_from_all_tokens():
    row = encode(conversation(*TALK), TOKENIZERS["smollm"], "all", 4096)[0]
    assert not row.supervised[0] and row.supervised[1:].all()


@pytest.mark.parametrize("adds_begin", [False, True])
def test_texts_are_cut_in_pieces_and_nothing_is_lost(adds_begin):
    tokenizer = byte_tokenizer("", adds_begin=adds_begin)
    text = "The quick brown fox. 日本 " * 9
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for limit in range(8, 60):
        rows = encode(conversation(Message("text", text, trained=True)), tokenizer, "answers", limit)
        body = [row.input_ids[adds_begin:].tolist() for row in rows]
        joined = [token for piece in body for token in piece]
        assert joined == [*ids, tokenizer.eos_token_id]
        assert all(2 <= len(row) <= limit and not row.cut for row in rows)
        assert all(not row.supervised[0] and row.supervised[1:].all() for row in rows)
        assert [row.index for row in rows] == list(range(len(rows)))
    going_on = encode(conversation(Message("text", text, trained=True), continues=True), tokenizer, "answers", 4096)[0]
    assert going_on.input_ids[-1] != tokenizer.eos_token_id


def test_a_tokenizer_that_truncates_and_pads_by_itself():
    tokenizer = byte_tokenizer("smollm")
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=7)
    assert learned(tokenizer, conversation(*TALK)) == ["Hello there<|im_end|>", "Fox 日本.<|im_end|>"]


def test_endless_conversations_and_empty_chats_are_refused():
    long = conversation(Message("user", "x" * CHAT_LIMIT_CHARACTERS), TALK[1])
    with pytest.raises(DataError, match=r"line 3: this conversation has 2,000,\d+ characters"):
        encode(long, TOKENIZERS["smollm"], "answers", 64)
    with pytest.raises(DataError, match="no message to answer"):
        render_prompt([], TOKENIZERS["smollm"])


def test_a_template_that_never_works_is_named():
    tokenizer = byte_tokenizer("smollm")
    for template, words in (("{{ raise_exception('no chats') }}", "no chats"), ("{% if %}", "can not be used"),
                            ("nothing", "leaves out messages")):
        tokenizer.chat_template = template
        with pytest.raises(DataError, match=words):
            RowEncoder(tokenizer, "answers", 64)
