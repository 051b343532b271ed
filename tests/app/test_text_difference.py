"""Where two texts differ."""

import time

import pytest

from app.text_difference import are_alike, differing_spans, places


@pytest.mark.parametrize(("left", "right", "parts"), [
    ("", "", ([], [])),
    ("the same", "the same", ([], [])),
    ("two plums", "three plums", (["two"], ["three"])),
    ("plums", "plums and tea", ([], [" and tea"])),
    ('{"plum": 2}', '{"plum": 3}', (["2"], ["3"])),
    ("", "all of it", ([], ["all of it"])),
])
def test_differing_parts(left: str, right: str, parts: tuple[list[str], list[str]]) -> None:
    first, second = differing_spans(left, right)
    assert ([left[a:b] for a, b in first], [right[a:b] for a, b in second]) == parts
    assert places((first, second)) == max(len(parts[0]), len(parts[1]))


def test_long_answers_are_compared_in_time() -> None:
    left = "\n".join(f"line {number} of many words" for number in range(3000))
    began = time.perf_counter()
    first, second = differing_spans(left, left.replace("line 7 ", "line seven "))
    assert time.perf_counter() - began < 2
    assert [left[a:b] for a, b in first] == ["line 7 of many words\n"] and len(second) == 1


@pytest.mark.parametrize(("left", "right", "alike"), [
    ("", "", True), ("two plums", "three plums", True), ("", "all of it", False),
    ("Sure! Here is your order: two large lattes.", '{"size":"large"}', False),
])
def test_texts_with_little_in_common_are_not_alike(left: str, right: str, alike: bool) -> None:
    assert are_alike(left, right, differing_spans(left, right)) is alike
