"""The base is loaded beside the rows, and nothing of it is left behind when they can not be used."""

import threading
import time
from collections.abc import Generator

import pytest

from core.errors import DataError
from core.events import Event, Note
from core.training.meanwhile import meanwhile

THEN = Note("loading")


def _making(events: int, fails: bool = False) -> Generator[Event, None, str]:
    for number in range(events):
        yield Note(str(number))
    if fails:
        raise DataError("Row 7 is broken.", "")
    return "rows"


def _drained(events: Generator[Event, None, tuple[str, str]]) -> tuple[list[str], tuple[str, str]]:
    told = []
    while True:
        try:
            told.append(next(events).message)
        except StopIteration as end:
            return told, end.value


@pytest.mark.parametrize("events", [0, 1, 2, 5])
def test_both_are_given_and_every_event_is_told(events: int) -> None:
    told, both = _drained(meanwhile(_making(events), lambda: "base", THEN))
    assert told == [*map(str, range(events)), "loading"]
    assert both == ("rows", "base")


def test_the_base_is_loaded_before_the_rows_are_all_made() -> None:
    loaded = threading.Event()

    def making() -> Generator[Event, None, str]:
        yield Note("0")
        yield Note("1")
        assert loaded.wait(20), "it waits for the rows"
        return "rows"

    _drained(meanwhile(making(), lambda: str(loaded.set()), THEN))


def test_what_is_wrong_with_the_first_rows_is_told_without_loading() -> None:
    loads = []
    with pytest.raises(DataError, match="Row 7"):
        _drained(meanwhile(_making(1, fails=True), lambda: str(loads.append(1)), THEN))
    assert not loads


def test_a_later_failure_waits_for_what_was_begun() -> None:
    ended = []
    before = threading.active_count()
    with pytest.raises(DataError, match="Row 7"):
        _drained(meanwhile(_making(3, fails=True), lambda: str(ended.append(1)), THEN))
    assert ended and threading.active_count() == before


def test_what_goes_wrong_while_loading_is_told() -> None:
    def load() -> str:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        _drained(meanwhile(_making(4), load, THEN))


def test_what_went_wrong_while_loading_does_not_wait_for_the_last_row() -> None:
    failed = threading.Event()

    def load() -> str:
        failed.set()
        raise MemoryError("no room")

    def making() -> Generator[Event, None, str]:
        while True:  # the rows have no end
            yield Note("more")
            if failed.is_set():
                time.sleep(0.01)

    with pytest.raises(MemoryError, match="no room"):
        _drained(meanwhile(making(), load, THEN))


def test_the_rows_are_let_go_before_the_load_is_waited_for() -> None:
    order = []
    closed = threading.Event()

    def making() -> Generator[Event, None, str]:
        try:
            yield from _making(9)
        finally:
            order.append("rows")
            closed.set()
        return "rows"

    def load() -> str:
        assert closed.wait(20)
        order.append("base")
        return "base"

    events = meanwhile(making(), load, THEN)
    for _ in range(3):
        next(events)
    events.close()
    assert order == ["rows", "base"]


def test_one_that_is_ended_early_leaves_no_thread() -> None:
    before = threading.active_count()
    events = meanwhile(_making(4), lambda: "base", THEN)
    for _ in range(3):
        next(events)
    events.close()
    assert threading.active_count() == before
