"""The base is loaded while the rows are tokenised: the one moves memory, the other computes."""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from core.events import Event

Made = TypeVar("Made")
Loaded = TypeVar("Loaded")
_BEGUN = 2  # events after which it goes on: the first batch of rows could be read and tokenised


def meanwhile(making: Generator[Event, None, Made], load: Callable[[], Loaded],
              then: Event) -> Generator[Event, None, tuple[Made, Loaded]]:
    """What `making` returns, whose events are passed on, and what `load` returns.

    `load` runs in a thread of its own as soon as `making` is well under way, so that what is wrong from the start is
    told at once. Where `making` ends or is ended before, nothing that was begun is left behind.

    Args:
        making: computes in this thread.
        load: called once, after `making` where that gives few events.
        then: told when only `load` is waited for.

    Raises:
        Exception: that of `making`, or of `load`, the one that comes first. What `load` has begun is waited for.
    """
    with ThreadPoolExecutor(1, "load") as thread, closing(making):
        loading: Future[Loaded] | None = None
        told = 0
        while True:
            try:
                event = next(making)
            except StopIteration as end:
                made: Made = end.value
                break
            told += 1
            if told == _BEGUN:
                loading = thread.submit(load)
            if loading is not None and loading.done():
                loading.result()  # what went wrong there need not wait for the last row
            yield event
        yield then
        return made, (loading or thread.submit(load)).result()
