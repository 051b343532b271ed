"""The peak of a function's memory, measured where nothing else runs."""

import multiprocessing
import tracemalloc
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

import pytest

T = TypeVar("T")


def traced(function: Callable[[], T]) -> tuple[T, int]:
    """What `function` returns (something that can be pickled), and the peak of Python's memory in bytes.

    It runs in a forked process: `tracemalloc` of CPython 3.11 crashes when it is stopped while another
    thread allocates, and other tests leave threads behind.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_trace, args=(function, there))
    child.start()
    there.close()
    try:
        answer = here.recv()
    finally:
        child.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _trace(function: Callable[[], object], out: Connection) -> None:
    tracemalloc.start()
    try:
        value = function()
        out.send((value, tracemalloc.get_traced_memory()[1]))
    except BaseException as error:  # noqa: BLE001 -- raised again by the test
        out.send(error)
