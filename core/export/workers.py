"""Threads that read and compute blocks of rows while those before are written."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Self, TypeVar

import torch

from core.control import Control
from core.export.shards import TensorReader

_MOST_THREADS = 4  # more only wait for the disk
_SYNC_BYTES = 2**28  # written, before the system is asked to bring it to the disk

Result = TypeVar("Result")


class Workers:
    """Each thread computes alone, with files of its own: small blocks lose more than they gain by being shared."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._readers: list[TensorReader] = []
        self._threads_before = torch.get_num_threads()
        self._count = min(_MOST_THREADS, self._threads_before)
        self._pool = ThreadPoolExecutor(self._count, "merge", self._begin)
        self._syncing = ThreadPoolExecutor(1, "sync")
        self._synced: Future[None] | None = None
        self._unsynced = 0

    def each(self, compute: Callable[[TensorReader, int, int], Result], blocks: Iterable[tuple[int, int]],
             control: Control) -> Iterator[Result]:
        """`compute` of a reader, start and stop for every block, in the order of the blocks; few are kept waiting."""
        waiting: deque[Future[Result]] = deque()
        try:
            for start, stop in blocks:
                control.check()
                waiting.append(self._pool.submit(lambda first, last: compute(self._own.reader, first, last),
                                                 start, stop))
                if len(waiting) > 2 * self._count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def written(self, file: IO[bytes], count: int) -> None:
        """Tell of written bytes; now and then they are brought to the disk, so that not all of it is left to the end.

        Raises:
            OSError: they could not be brought there.
        """
        self._unsynced += count
        if self._unsynced >= _SYNC_BYTES and (self._synced is None or self._synced.done()):
            self.wait()
            file.flush()
            self._unsynced, self._synced = 0, self._syncing.submit(os.fsync, file.fileno())

    def wait(self) -> None:
        """Until what was asked for lies on the disk; before the file is closed. Raises OSError where it does not."""
        if self._synced is not None:
            self._synced.result()
            self._synced = None

    def _begin(self) -> None:
        torch.set_num_threads(1)
        self._own.reader = TensorReader()
        self._readers.append(self._own.reader)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._syncing.shutdown()
        for reader in self._readers:
            reader.close()
        torch.set_num_threads(self._threads_before)  # which threads that come later begin with
