"""Regular expressions that people type or foreign files bring, each match bounded in time.

A pattern such as `(a+)+$` can try for longer than anybody lives; here it is refused instead.
"""

import functools
import re
from collections.abc import Mapping
from typing import TypeVar

import regex

from core.errors import AdapterError

Value = TypeVar("Value")
MATCH_SECONDS = 0.2  # of one match; a sane pattern needs microseconds for a module's name


def pattern_problem(pattern: str) -> str:
    """What is wrong with `pattern` as a regular expression; "" where nothing is."""
    try:
        re.compile(pattern)  # PEFT reads the saved file with this one
        _compiled(pattern)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        return str(error)
    return ""


def whole_match(pattern: str, name: str) -> bool:
    """True where all of `name` matches, which is PEFT's rule for `target_modules`.

    Raises:
        AdapterError: not a regular expression, or one that takes too long.
    """
    return _match(pattern, pattern, name, whole=True)


def end_match(key: str, name: str) -> bool:
    """True where `key` matches the end of `name` after a dot, which is PEFT's rule for `rank_pattern`.

    Raises:
        AdapterError: not a regular expression, or one that takes too long.
    """
    return _match(key, rf"(.*\.)?({key})$", name, whole=False)


def pattern_value(pattern: Mapping[str, Value] | None, name: str, default: Value) -> Value:
    """The value of the first key that matches the end of `name`, else `default`.

    Raises:
        AdapterError: a key that is not a regular expression, or one that takes too long.
    """
    for key, value in (pattern or {}).items():
        if end_match(str(key), name):
            return value
    return default


def _match(given: str, pattern: str, name: str, whole: bool) -> bool:
    problem = pattern_problem(given) or pattern_problem(pattern)
    if problem:
        raise AdapterError(f"{given!r} is not a valid regular expression ({problem}).")
    compiled = _compiled(pattern)
    match = compiled.fullmatch if whole else compiled.match
    try:
        return match(name, timeout=MATCH_SECONDS) is not None
    except TimeoutError:
        raise AdapterError(f"The regular expression {given!r} takes too long on {name}.",
                           "Write it without repetitions inside repetitions.") from None


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> "regex.Pattern[str]":
    return regex.compile(pattern)
