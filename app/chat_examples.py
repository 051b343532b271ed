"""Example questions for an empty chat, from the rows that the run was made with."""

import json
from dataclasses import dataclass
from pathlib import Path

from core.config import RunConfig
from core.paths import SAMPLE, SAMPLE_HELD_OUT
from core.records import Message

_MOST = 3
_LONGEST = 400  # characters; a longer question is no example to click on


@dataclass(frozen=True)
class Examples:
    """Questions to click on and the system message that the rows begin with ("" where there is none)."""

    questions: tuple[str, ...] = ()
    system: str = ""


def is_sample(config: RunConfig) -> bool:
    """True for a run of the sample that comes along: its held-out rows are known."""
    return any(Path(file).resolve().parent == SAMPLE.resolve() for file in config.data.train)


def sample_examples() -> Examples:
    """The first held-out questions of the sample. Raises OSError and ValueError where the file is not as it was."""
    rows = []
    with open(SAMPLE_HELD_OUT, encoding="utf-8") as lines:
        for line in lines:
            rows.append([Message(turn["role"], turn["content"]) for turn in json.loads(line)["messages"]])
            if len(rows) == _MOST:
                break
    return examples_of(rows)


def examples_of(conversations: list[list[Message]]) -> Examples:
    """The first question of each conversation, and the system message of the first one."""
    questions = []
    for messages in conversations:
        question = next((message.content for message in messages if message.role == "user"), "")
        if question and len(question) <= _LONGEST and question not in questions:
            questions.append(question)
    first = conversations[0] if conversations else []
    system = first[0].content if first and first[0].role == "system" else ""
    return Examples(tuple(questions[:_MOST]), system)
