"""Whether an answer is right: exact match of its text. Plain Python."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HeldOutRow:
    """One question that was not trained on: the messages up to it, and the right answer."""

    messages: tuple[tuple[str, str], ...]  # (role, content)
    expected: str

    @property
    def question(self) -> str:
        """What the person says last."""
        return self.messages[-1][1]


def is_exact(answer: str, expected: str) -> bool:
    """True where the texts are equal but for white space at their ends.

    This is stricter than comparing parsed JSON: other spaces, another order of keys or a word before the
    brace are wrong, as a program that reads the answer may rely on its form.
    """
    return answer.strip() == expected.strip()


def exact_match(answers: Sequence[str], rows: Sequence[HeldOutRow]) -> float:
    """Share of right answers, 0 to 1. Raises ValueError where there are none or the lengths differ."""
    if not rows:
        raise ValueError("there is nothing to score")
    return sum(is_exact(answer, row.expected) for answer, row in zip(answers, rows, strict=True)) / len(rows)
