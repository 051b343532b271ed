"""Where two texts differ, word by word. No Qt here."""

import re
from difflib import SequenceMatcher

Span = tuple[int, int]  # first character, character after the last

_PIECES = re.compile(r"\w+|\s+|[^\w\s]")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_ALIKE = 1 / 3  # of the longer text
_MOST_PAIRS = 2_000_000  # of pieces; longer texts are compared by lines, which is quick enough for a click


def differing_spans(left: str, right: str) -> tuple[list[Span], list[Span]]:
    """The parts of `left` that `right` has not, and the other way round; ([], []) where both are the same."""
    pieces = _PIECES
    first, second = _cut(left, pieces), _cut(right, pieces)
    if len(first) * len(second) > _MOST_PAIRS:
        pieces = _LINES
        first, second = _cut(left, pieces), _cut(right, pieces)
    matcher = SequenceMatcher(None, [left[a:b] for a, b in first], [right[a:b] for a, b in second], autojunk=False)
    found: tuple[list[Span], list[Span]] = ([], [])
    for kind, low, high, other_low, other_high in matcher.get_opcodes():
        if kind != "equal":
            _add(found[0], first[low:high])
            _add(found[1], second[other_low:other_high])
    return found


def are_alike(left: str, right: str, spans: tuple[list[Span], list[Span]]) -> bool:
    """False for two texts that share so little that single places tell nothing."""
    common = max(len(left) - _length(spans[0]), len(right) - _length(spans[1]))
    return not any(spans) or common >= _ALIKE * max(len(left), len(right))


def _length(spans: list[Span]) -> int:
    return sum(end - first for first, end in spans)


def places(spans: tuple[list[Span], list[Span]]) -> int:
    """In how many places two texts differ."""
    return max(len(spans[0]), len(spans[1]))


def _cut(text: str, pieces: re.Pattern[str]) -> list[Span]:
    return [match.span() for match in pieces.finditer(text)]


def _add(spans: list[Span], pieces: list[Span]) -> None:
    if pieces:
        spans.append((pieces[0][0], pieces[-1][1]))
