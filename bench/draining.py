"""A generator that yields events and returns something, run to its end."""

from collections.abc import Generator
from typing import Any, TypeVar

Answer = TypeVar("Answer")


def finish(stream: Generator[Any, None, Answer]) -> Answer:
    """Run a generator to its end and give what it returns."""
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value
