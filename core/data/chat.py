"""Conversations as text, through the model's own chat template, and where the assistant speaks in it.

What counts as spoken by the assistant is what the model must produce itself when it is asked: all
text after the generation prompt up to and with the token that ends the turn. The place is found by
rendering the beginning of the conversation with the generation prompt, which must be a prefix of
the whole. Where a template rewrites earlier turns (Qwen 3 drops old thoughts), the turn is found by
rendering once more with a marker in its place. If neither proves the place, the row is refused.

What a template can not say is said in words it knows, the same in training and in the chat:
- no system role (Gemma 2): the system's text opens the first user turn;
- no tool role: the tool's answer is a user turn;
- no list of tools: they are described in the system's text;
- turns that must alternate: neighbours of the same role become one turn, parted by an empty line.

A model without chat template gets BUILT_IN_TEMPLATE.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from core.data.formats import Conversation
from core.data.sandbox import Template, TemplateRefused
from core.errors import DataError
from core.records import Message

BUILT_IN_TEMPLATE = (
    "{{ begin_of_text }}"
    "{% for message in messages %}"
    "{{ ('' if loop.first else '\\n\\n') + '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Assistant:\\n' }}{% endif %}"
)

_TOOLS_TEXT = ("You can call these functions. To call one, answer only with a JSON object that has its "
               '"name" and its "arguments".\n\n')
_PROBE_TOOL = {"type": "function", "function": {
    "name": "probeTool", "description": "probe", "parameters": {
        "type": "object", "properties": {"word": {"type": "string", "description": "probe"}}, "required": ["word"]}}}
_PROBE_CALL = {"name": "probeTool", "arguments": {"word": "probeWord"}}
_MARKER = "probe7Answer"
_TEMPLATE_HINT = "Choose another model, or the same model with a chat template that works."


@dataclass(frozen=True)
class Turn:
    """One message as the template gets it."""

    message: dict[str, Any]
    trained: bool = False

    @property
    def role(self) -> str:
        """Of the message."""
        return self.message["role"]


@dataclass(frozen=True)
class Rendered:
    """The text of a row, and the spans (first character, after the last) that are learned from."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Abilities:
    system: bool
    tools: bool
    tool_calls: bool
    tool_role: bool
    repeats: bool  # two user turns in a row


class ChatTemplate:
    """The chat template of one tokenizer.

    Raises:
        DataError: the template can not even render a question and its answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.is_built_in = not tokenizer.chat_template
        self.end_token = _token(tokenizer, "eos_token")
        variables = {**{key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)},
                     "begin_of_text": begin_token(tokenizer)}
        variables.setdefault("eos_token", "")
        self._specials = _special_tokens(tokenizer)
        try:
            plain = BUILT_IN_TEMPLATE if self.is_built_in else str(tokenizer.get_chat_template())
            self._template = Template(plain, variables)
            self._tool_template = self._template
            if not self.is_built_in and (other := str(tokenizer.get_chat_template(tools=[_PROBE_TOOL]))) != plain:
                self._tool_template = Template(other, variables)
            self._prompt, self._opening = self._probe_answer()
        except (TemplateRefused, ValueError) as error:
            raise DataError(f"The chat template of the model can not be used: {error}.", _TEMPLATE_HINT) from None
        self._can = self._probe_abilities()

    def render(self, conversation: Conversation, *, spans: bool = True) -> Rendered:
        """The whole conversation as text, with the spans of its trained turns (none without `spans`).

        Raises:
            DataError: with file and line, where the template refuses it or a span can not be proved.
        """
        refusal = TemplateRefused("")
        for structured in (True, False):
            if structured and not (conversation.calls and self._can.tool_calls):
                continue
            turns, tools = self._adapt(conversation, structured)
            try:
                text = self._text(turns, tools)
            except TemplateRefused as error:
                refusal = error
                continue
            if spans:
                return self._with_spans(conversation, turns, tools, text)
            return Rendered(self._closed(text) if turns[-1].trained else text, ())
        raise DataError(f"{conversation.place}: the model's chat template refuses this conversation: {refusal}.",
                        "Change the order of its roles, or remove the row.")

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text after which the assistant answers `messages`.

        Raises:
            DataError: the template refuses them.
        """
        turns = self._merged(self._folded([Turn(_plain(message)) for message in messages], ()))
        try:
            return self._text(turns, (), generation_prompt=True)
        except TemplateRefused as error:
            raise DataError(f"The model's chat template refuses this conversation: {error}.",
                            "Start a new conversation.") from None

    # What the template can do

    def _probe_answer(self) -> tuple[str, str]:
        """The generation prompt, and what the template puts between it and the words of an answer."""
        user, answer = {"role": "user", "content": "probeQuestion"}, {"role": "assistant", "content": _MARKER}
        whole = self._template.render([user, answer])
        if "probeQuestion" not in whole or _MARKER not in whole:
            raise TemplateRefused("it leaves out messages")
        before = self._template.render([user])
        asked = self._template.render([user], generation_prompt=True)
        prompt = asked[len(before):] if asked.startswith(before) else ""
        opening = whole[len(asked):whole.index(_MARKER)] if whole.startswith(asked) else ""
        return prompt, opening

    def _probe_abilities(self) -> _Abilities:
        user, other = {"role": "user", "content": "probeQuestion"}, {"role": "user", "content": "probeSecond"}
        answer = {"role": "assistant", "content": _MARKER}
        system = {"role": "system", "content": "probeSystem"}
        tool = {"role": "tool", "content": "probeResult", "name": "probeTool", "tool_call_id": "c00000000"}
        calling = {"role": "assistant", "content": "", "tool_calls": [_call_entry(_PROBE_CALL, 0)]}
        words = ("probeTool", "probeWord", "probeResult", _MARKER)
        return _Abilities(
            system=self._says([system, user, answer], (), ("probeSystem", "probeQuestion", _MARKER)),
            tools=self._says([user, answer], (_PROBE_TOOL,), ("probeTool", _MARKER)),
            tool_calls=self._says([user, calling, tool, answer], (), words),
            tool_role=self._says([user, answer, tool, answer], (), ("probeResult", _MARKER)),
            repeats=self._says([user, other, answer], (), ("probeQuestion", "probeSecond")),
        )

    def _says(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], words: Sequence[str]) -> bool:
        try:
            template = self._tool_template if tools else self._template
            text = template.render(messages, tools)
        except TemplateRefused:
            return False
        return all(word in text for word in words)

    # Saying it in words that the template knows

    def _adapt(self, conversation: Conversation, structured: bool) -> tuple[list[Turn], tuple[dict[str, Any], ...]]:
        turns = []
        waiting: list[tuple[str, str]] = []  # (id, function) of calls that no tool has answered yet
        for position, message in enumerate(conversation.messages):
            plain, calls = _plain(message), conversation.calls.get(position)
            if structured and calls:
                entries = [_call_entry(function, position * 100 + number)
                           for number, function in enumerate(calls.functions)]
                waiting = [(entry["id"], entry["function"]["name"]) for entry in entries]
                plain |= {"content": calls.said, "tool_calls": entries}
            elif structured and message.role == "tool" and waiting:
                identity, name = waiting.pop(0)
                plain |= {"name": name, "tool_call_id": identity}
            turns.append(Turn(plain, message.trained))
        tools = conversation.tools if self._can.tools else ()
        described = conversation.tools if not self._can.tools else ()
        return self._merged(self._folded(turns, described, structured=structured)), tools

    def _folded(self, turns: list[Turn], described: Sequence[dict[str, Any]],
                *, structured: bool = False) -> list[Turn]:
        """Without roles that the template does not know; `described` tools become words of the system."""
        if described:
            words = _TOOLS_TEXT + json.dumps([tool.get("function", tool) for tool in described], ensure_ascii=False)
            if turns and turns[0].role == "system":
                turns = [_with_content(turns[0], f"{turns[0].message['content']}\n\n{words}"), *turns[1:]]
            else:
                turns = [Turn({"role": "system", "content": words}), *turns]
        if not (self._can.tool_role or (structured and self._can.tool_calls)):
            turns = [Turn({"role": "user", "content": turn.message["content"]}) if turn.role == "tool" else turn
                     for turn in turns]
        if not self._can.system and any(turn.role == "system" for turn in turns):
            said = "\n\n".join(turn.message["content"] for turn in turns if turn.role == "system")
            turns = [turn for turn in turns if turn.role != "system"]
            if turns and turns[0].role == "user":
                turns = [_with_content(turns[0], f"{said}\n\n{turns[0].message['content']}"), *turns[1:]]
            else:
                turns = [Turn({"role": "user", "content": said}), *turns]
        return turns

    def _merged(self, turns: list[Turn]) -> list[Turn]:
        if self._can.repeats:
            return turns
        merged: list[Turn] = []
        for turn in turns:
            last = merged[-1] if merged else None
            if last and last.role == turn.role and turn.trained == last.trained and \
                    turn.role != "tool" and "tool_calls" not in {**last.message, **turn.message}:
                merged[-1] = _with_content(last, f"{last.message['content']}\n\n{turn.message['content']}")
            else:
                merged.append(turn)
        return merged

    def _text(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]], *, generation_prompt: bool = False) -> str:
        template = self._tool_template if tools else self._template
        return template.render([turn.message for turn in turns], tools, generation_prompt=generation_prompt)

    # Where the assistant speaks

    def _with_spans(self, conversation: Conversation, turns: list[Turn], tools: Sequence[dict[str, Any]],
                    text: str) -> Rendered:
        spans = []
        for position, turn in enumerate(turns):
            if not turn.trained:
                continue
            span = self._span(turns, tools, text, position)
            if span is None:
                raise DataError(
                    f"{conversation.place}: the model's chat template changes answer {position + 1} so that its "
                    "place can not be proved.", "Remove the row, or learn from all tokens instead of the answers.")
            spans.append(span)
        if spans and turns[-1].trained and (closed := self._closed(text)) != text:
            text = closed
            spans[-1] = (spans[-1][0], len(text))
        return Rendered(text, tuple(spans))

    def _closed(self, text: str) -> str:
        """With the end token, if no special token ends the last turn; else the model never learns to stop."""
        stripped = text.rstrip()
        return text if not self.end_token or stripped.endswith(self._specials) else stripped + self.end_token

    def _span(self, turns: list[Turn], tools: Sequence[dict[str, Any]], text: str,
              position: int) -> tuple[int, int] | None:
        start = self._prefix(turns[:position], tools, text, generation_prompt=True)
        is_last = position == len(turns) - 1
        end = len(text) if is_last else self._prefix(turns[:position + 1], tools, text)
        if start is not None and end is not None and text[start:end].strip():
            return start, start + len(text[start:end].rstrip())  # white space after the turn need not be said
        around = self._around(turns, tools, text, position)
        if around is None:
            return None
        head, tail = around
        if start is None:
            start = self._answer_start(text, head)
        if end is None:
            after = tail + len(text[tail:]) - len(text[tail:].lstrip())
            end = after + len(next((token for token in self._specials if text.startswith(token, after)), ""))
            end = end if end > after else tail
        else:
            end = start + len(text[start:end].rstrip())
        return (start, end) if start < end else None

    def _prefix(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]], text: str,
                *, generation_prompt: bool = False) -> int | None:
        """The length of the conversation's beginning as text, if the whole text begins with it."""
        try:
            beginning = self._text(turns, tools, generation_prompt=generation_prompt)
        except TemplateRefused:
            return None
        return len(beginning) if text.startswith(beginning) else None

    def _around(self, turns: list[Turn], tools: Sequence[dict[str, Any]], text: str,
                position: int) -> tuple[int, int] | None:
        """Where the words of a turn begin and end, by rendering with a marker in their place."""
        message = {key: value for key, value in turns[position].message.items() if key != "tool_calls"}
        marked = [*turns[:position], Turn({**message, "content": _MARKER}), *turns[position + 1:]]
        try:
            other = self._text(marked, tools)
        except TemplateRefused:
            return None
        if other.count(_MARKER) != 1:
            return None
        head, tail = other.split(_MARKER)
        if text.startswith(head) and text.endswith(tail) and len(head) + len(tail) <= len(text):
            return len(head), len(text) - len(tail)
        return None

    def _answer_start(self, text: str, head: int) -> int:
        """From where the model speaks, when `head` is where the answer's own words begin."""
        if self._opening and text.endswith(self._opening, 0, head):
            return head - len(self._opening)
        return head


def begin_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that this tokenizer puts before every text, "" if it puts none."""
    begin = _token(tokenizer, "bos_token")
    ids = tokenizer("a")["input_ids"]
    return begin if begin and ids and ids[0] == tokenizer.bos_token_id else ""  # type: ignore[index]


def _token(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    return tokenizer.special_tokens_map.get(name) or ""  # type: ignore[return-value]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The texts of the added tokens, the longest first, without those that are only spaces."""
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return tuple(sorted((token for token in tokens if token.strip() == token != ""), key=len, reverse=True))


def _plain(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


def _with_content(turn: Turn, content: str) -> Turn:
    return Turn({**turn.message, "content": content}, turn.trained)


def _call_entry(function: dict[str, Any], number: int) -> dict[str, Any]:
    return {"type": "function", "id": f"c{number:08d}", "function": function}  # Mistral wants 9 letters or digits
