"""Threads wait asleep while other programs want their processors, and the results are the same."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch

from core.training import contention
from core.training.contention import _Watch, waited_seconds, watched_contention

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
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
    watch = _Watch()
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
    with watched_contention(CPU):
        assert until(lambda: any(thread.name == "spare" for thread in contention.threading.enumerate()))
        assert torch.equal(x @ x, alone)
    assert not {"spare", "contention"} & {thread.name for thread in contention.threading.enumerate()}


@pytest.mark.parametrize("why", ["one thread", "not told", "on a GPU"])
def test_nothing_is_watched_where_nothing_can_be_won(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 if why == "one thread" else 2)
    monkeypatch.setattr(contention, "waited_seconds", lambda: {} if why == "not told" else {"1": 0.0})
    with watched_contention(torch.device("meta") if why == "on a GPU" else CPU):
        assert all(thread.name != "contention" for thread in contention.threading.enumerate())


def test_where_the_system_tells_it_every_thread_is_there(tmp_path: contention.Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "schedstat").write_text("9000000000 1500000000 3\n")
    (tmp_path / "8").mkdir()  # has just ended
    monkeypatch.setattr(contention, "_TASKS", tmp_path)
    assert waited_seconds() == {"7": 1.5}
    monkeypatch.setattr(contention, "_TASKS", tmp_path / "none")
    assert waited_seconds() == {}
