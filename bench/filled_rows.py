"""Rows for measurements whose size must be exact: every answer is longer than the greatest length."""

import json
import random
from pathlib import Path

_WORDS = ["green", "seven", "house", "river", "bread", "small", "under", "light", "stone", "again"]
_BEYOND = 100  # words: each is at least one token


def write_filled_rows(path: Path, rows: int, length: int, instruction: str = "Go on.") -> None:
    """JSON lines of `rows` answers to `instruction`, all different, that are cut off at `length` tokens."""
    draw = random.Random(0)
    path.write_text("".join(json.dumps({"instruction": instruction, "output": " ".join(
        draw.choices(_WORDS, k=length + _BEYOND))}) + "\n" for _ in range(rows)), encoding="utf-8")
