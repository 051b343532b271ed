"""Threads wait asleep while other programs want their processors, and the results are the same."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch

from core.training import contention
from core.training.contention import _Watch, teams_needed, waited_seconds, watched_contention


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(contention, "_processors", lambda: 2)
    monkeypatch.setattr(contention, "sees_contention", lambda: True)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "_LOOK_SECONDS", 0.01)


def until(true: Callable[[], bool]) -> bool:
    """Whether it becomes true within some seconds."""
    for _ in range(1000):
        if true():
            return True
        contention.time.sleep(0.01)
    return False


@pytest.mark.usefixtures("two_threads", "quick")
def test_a_wanted_processor_makes_them_sleep_and_a_calm_machine_spin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    busy = True
    monkeypatch.setattr(contention, "waited_seconds", lambda: {"1": float(next(clock)) if busy else 0.0})
    watch = _Watch(1)
    watch.start()
    try:
        assert until(lambda: watch.contended)
        busy = False
        assert until(lambda: not watch.contended)
    finally:
        watch.end()
    assert not watch.is_alive()


@pytest.mark.usefixtures("two_threads", "quick")
def test_all_is_gone_and_unchanged_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(contention, "waited_seconds", lambda: {"1": float(next(clock))})
    x = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    alone = x @ x
    with watched_contention():
        assert until(lambda: any(thread.name == "spare" for thread in contention.threading.enumerate()))
        assert torch.equal(x @ x, alone)
    assert not {"spare", "contention"} & {thread.name for thread in contention.threading.enumerate()}


@pytest.mark.parametrize(("threads", "processors", "told"), [(1, 2, True), (2, 2, False), (2, 64, True)])
def test_nothing_is_watched_where_nothing_can_be_won(threads: int, processors: int, told: bool,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(contention, "_processors", lambda: processors)
    monkeypatch.setattr(contention, "sees_contention", lambda: told)
    with watched_contention():
        assert all(thread.name != "contention" for thread in contention.threading.enumerate())


@pytest.mark.parametrize("threads", range(2, 17))
@pytest.mark.parametrize("a_core", [1, 2])  # logical processors of each
def test_so_many_threads_more_are_more_than_the_processors(threads: int, a_core: int) -> None:
    managed = 1 + (threads - 1) + teams_needed(threads, a_core * threads) * (threads - 1)
    assert managed > a_core * threads
    assert managed - (threads - 1) <= a_core * threads  # one team less would not be enough


@pytest.mark.usefixtures("two_threads", "quick")
def test_a_watch_that_can_start_no_thread_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(contention, "waited_seconds", lambda: {"1": float(next(clock))})

    def refuse(teams: int) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(contention, "_SpareThreads", refuse)
    watch = _Watch(1)
    watch.start()
    assert until(lambda: not watch.is_alive())
    watch.end()


def test_where_the_system_tells_it_every_thread_is_there(tmp_path: contention.Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "schedstat").write_text("9000000000 1500000000 3\n")
    (tmp_path / "8").mkdir()  # has just ended
    monkeypatch.setattr(contention, "_TASKS", tmp_path)
    assert waited_seconds() == {"7": 1.5}
    monkeypatch.setattr(contention, "_TASKS", tmp_path / "none")
    assert waited_seconds() == {}
