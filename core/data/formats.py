"""Rows become conversations, whichever of the usual layouts they have."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.data.readers import TEXT_BLOCK_CHARACTERS, RawRow, read_rows, split_text
from core.data.source import Report, place, stop_at
from core.errors import DataError
from core.records import Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatbot": "assistant",
    "function_call": "assistant", "tool_call": "assistant", "tool_calls": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "ipython": "tool", "tool_response": "tool",
}
SHARE_GPT, CHAT = "ShareGPT", "chat messages"  # formats whose rows hold a list of turns
CALL_ROLES = frozenset({"function_call", "tool_call", "tool_calls"})
_WEIGHTS = ("loss_weight", "weight")
EXPECTED = ("messages (role, content), conversations (from, value), instruction/input/output, prompt/completion, "
            "question/answer or text")

# (name, question column, answer column); the first that a row has both of.
_PAIRS = (
    ("prompt and completion", "prompt", "completion"),
    ("prompt and completion", "prompt", "response"),
    ("question and answer", "question", "answer"),
    ("question and answer", "query", "response"),
    ("question and answer", "query", "answer"),
    ("question and answer", "input", "output"),
)


@dataclass(frozen=True)
class ToolCalls:
    """What an assistant's message calls: `said` is its text without the calls, `functions` are {name, arguments}."""

    said: str
    functions: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Conversation:
    """One row in the one layout that the rest of the program knows.

    Plain text is a single message of role "text". `calls` holds the structured tool calls of an
    assistant's message by its place; the message's content has them as text. `tools` are the
    functions that the assistant may call. `continues`: a plain text that goes on in the next row.
    """

    messages: tuple[Message, ...]
    file: Path
    line: int
    format: str
    tools: tuple[dict[str, Any], ...] = ()
    calls: Mapping[int, ToolCalls] = field(default_factory=dict)
    offset: int = 0
    continues: bool = False

    @property
    def is_text(self) -> bool:
        """True for plain text, which no chat template is put around."""
        return self.messages[0].role == "text"

    @property
    def place(self) -> str:
        """File and line, for errors."""
        return place(self.file, self.line)


def read_conversations(path: Path, report: Report = stop_at) -> Iterator[Conversation]:
    """The conversations of one file, all of the same format; a long plain text comes in parts.

    A row that can not be used goes to `report`; if that returns, reading goes on.

    Raises:
        DataError: naming file and line, where reading can not go on.
    """
    first: Conversation | None = None
    for row in read_rows(path, report):
        try:
            conversation = to_conversation(row)
            first = first or conversation
            require_same_format(first, conversation)
        except DataError as error:
            report(error)
            continue
        yield from parts(conversation)


def parts(conversation: Conversation) -> Iterator[Conversation]:
    """The conversation itself, or a long plain text in parts."""
    message = conversation.messages[0]
    if not conversation.is_text or len(message.content) <= TEXT_BLOCK_CHARACTERS:
        yield conversation
        return
    texts = split_text(message.content)
    for number, text in enumerate(texts, 1):
        yield replace(conversation, messages=(replace(message, content=text),),
                      continues=conversation.continues or number < len(texts))


def require_same_format(first: Conversation, conversation: Conversation) -> None:
    """Raise DataError where a row of a file has another format than the file's first row."""
    if conversation.format != first.format:
        raise DataError(
            f"{conversation.place}: this row is {conversation.format}, but the rows before are {first.format}.",
            "Put rows of different formats into different files.")


def to_conversation(row: RawRow) -> Conversation:
    """Recognise one row.

    Raises:
        DataError: unknown columns, unknown roles or values of the wrong kind, with file and line.
    """
    return _Row(row).conversation()


class _Row:
    """The recogniser of one row; it knows the row's place for its errors."""

    def __init__(self, row: RawRow) -> None:
        self._row = row
        self._calls: dict[int, ToolCalls] = {}

    def conversation(self) -> Conversation:
        value = self._row.value
        if isinstance(value, str):
            return self._made("plain text", [Message("text", value, trained=True)])
        value = {key.strip().lower(): item for key, item in value.items() if isinstance(key, str)}
        for name in ("messages", "conversations", "conversation"):
            if isinstance(value.get(name), list):
                return self._chat(value, value[name])
        if "instruction" in value and ("output" in value or "response" in value):
            return self._alpaca(value)
        for name, question, answer in _PAIRS:
            if question in value and answer in value:
                return self._pair(name, value, value[question], value[answer])
        if "text" in value:
            text = self._text(value, "text")
            return self._made("plain text", [Message("text", text, trained=True)])
        return self._refuse(value)

    def _refuse(self, value: dict[str, Any]) -> Conversation:
        found = ", ".join(sorted(map(str, value))[:12]) or "none"
        if "chosen" in value and "rejected" in value:
            raise self._error(f"rows of preferences (columns {found}) can not be trained on",
                              "Keep the chosen answer: columns prompt and completion.")
        raise self._error(f"the columns are not known (found: {found})", f"Expected: {EXPECTED}.")

    def _error(self, message: str, hint: str = "") -> DataError:
        return DataError(f"{place(self._row.file, self._row.line)}: {message}.", hint)

    def _made(self, name: str, messages: Sequence[Message], tools: Any = None) -> Conversation:
        row = self._row
        return Conversation(tuple(messages), row.file, row.line, name, self._tools(tools), self._calls,
                            row.offset, row.continues)

    def _text(self, values: Mapping[str, Any], name: str) -> str:
        """A text column; null and a missing one are the empty text."""
        value = values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._error(f"the column {name} must be a text, not {_kind(value)}")
        return value

    def _alpaca(self, value: dict[str, Any]) -> Conversation:
        messages = self._opening(value)
        for turn in value.get("history") or ():
            if not (isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(part, str) for part in turn)):
                raise self._error("history must be a list of pairs of texts", 'For example: [["question", "answer"]]')
            messages += [Message("user", turn[0]), _answer(turn[1])]
        given = self._text(value, "input" if "input" in value else "context")
        instruction = self._text(value, "instruction")
        question = f"{instruction}\n\n{given}" if given.strip() and instruction.strip() else instruction or given
        messages += [Message("user", question),
                     _answer(self._text(value, "output" if "output" in value else "response"))]
        return self._made("alpaca", messages)

    def _opening(self, value: dict[str, Any]) -> list[Message]:
        system = self._text(value, "system")
        return [Message("system", system)] if system.strip() else []

    def _pair(self, name: str, value: dict[str, Any], question: Any, answer: Any) -> Conversation:
        if isinstance(question, list) and isinstance(answer, list):
            return self._chat(value, question + answer, name)
        texts = {"question": question, "answer": answer}
        messages = [Message("user", self._text(texts, "question")), _answer(self._text(texts, "answer"))]
        return self._made(name, self._opening(value) + messages)

    def _chat(self, value: dict[str, Any], turns: list[Any], name: str = "") -> Conversation:
        if not turns:
            raise self._error("the conversation is empty", "Remove the row, or give it messages.")
        share_gpt = isinstance(turns[0], dict) and "from" in turns[0]
        messages = self._opening(value)
        for number, turn in enumerate(turns, 1):
            if not isinstance(turn, dict):
                raise self._error(f"message {number} must be an object, not {_kind(turn)}",
                                  'For example: {"role": "user", "content": "…"}')
            messages.append(self._message(turn, number, len(messages)))
        return self._made(name or (SHARE_GPT if share_gpt else CHAT), messages, value.get("tools"))

    def _message(self, turn: dict[str, Any], number: int, position: int) -> Message:
        name = turn.get("role", turn.get("from"))
        if not isinstance(name, str):
            raise self._error(f"message {number} has no role", "Each message has role and content, or from and value.")
        role = ROLES.get(name.strip().lower())
        if role is None:
            raise self._error(f"message {number} has the unknown role {name[:40]!r}",
                              "Known roles: system, user, assistant, tool (or human, gpt, function_call, observation).")
        content = self._content(turn.get("content", turn.get("value")), number)
        calls = self._tool_calls(turn, number)
        if calls:
            self._calls[position] = ToolCalls(content, calls)
            content = "\n".join(part for part in (content, _calls_text(calls)) if part)
        elif name.strip().lower() in CALL_ROLES and (calls := _calls_in(content)):
            self._calls[position] = ToolCalls("", calls)
        return Message(role, content, trained=self._trained(turn, number, role, content))

    def _content(self, content: Any, number: int) -> str:
        """A text, or a list of typed parts whose texts are joined."""
        if content is None:
            return ""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise self._error(f"the content of message {number} must be a text, not {_kind(content)}")
        texts = []
        for part in content:
            if isinstance(part, str):
                texts.append(part)
                continue
            kind = part.get("type", "text") if isinstance(part, dict) else _kind(part)
            text = part.get("text", part.get("value")) if isinstance(part, dict) and kind == "text" else None
            if not isinstance(text, str):
                raise self._error(f"message {number} has a part of type {str(kind)[:40]!r}; only text can be learned",
                                  "Remove images, sounds and other parts.")
            texts.append(text)
        return "".join(texts)

    def _trained(self, turn: dict[str, Any], number: int, role: str, content: str) -> bool:
        """Assistant's messages are learned unless their weight is 0; an empty answer teaches nothing."""
        weight: Any = next((turn[key] for key in _WEIGHTS if turn.get(key) is not None), 1)
        if not isinstance(weight, int | float) or weight not in (0, 1):
            raise self._error(f"the loss weight of message {number} must be 0 or 1",
                              "0: this message is not learned; 1: it is.")
        return role == "assistant" and bool(weight) and bool(content.strip())

    def _tool_calls(self, turn: dict[str, Any], number: int) -> tuple[dict[str, Any], ...]:
        """OpenAI's `tool_calls`, as {"name", "arguments"}."""
        given = turn.get("tool_calls")
        if not given:
            return ()
        calls = []
        for call in given if isinstance(given, list) else [given]:
            function = call.get("function", call) if isinstance(call, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise self._error(f"a tool call of message {number} has no function name")
            calls.append({"name": function["name"], "arguments": _parsed(function.get("arguments", {}))})
        return tuple(calls)

    def _tools(self, tools: Any) -> tuple[dict[str, Any], ...]:
        """The functions offered, from a list or its JSON text, in OpenAI's layout."""
        if isinstance(tools, str):
            tools = _parsed(tools) if tools.strip() else None
        if not tools:
            return ()
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise self._error("tools must be a list of function descriptions")
        return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def _answer(text: str) -> Message:
    return Message("assistant", text, trained=bool(text.strip()))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null", str: "a text"}
    return names.get(type(value), "a number")


def _parsed(text: Any) -> Any:
    """The value in a JSON text; what is no JSON stays a text."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _calls_in(content: str) -> tuple[dict[str, Any], ...]:
    """The calls that a ShareGPT function_call holds as JSON; none where it is another text."""
    value = _parsed(content)
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return ()
    return tuple({"name": call["name"], "arguments": _parsed(call.get("arguments", {}))} for call in calls)


def _calls_text(calls: Sequence[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
