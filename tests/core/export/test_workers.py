"""Blocks are computed by several threads, and come in their order; a merge of 16 bits is that of fp64, rounded."""

import threading
from pathlib import Path

import pytest
import torch

from core.control import Control
from core.errors import Cancelled, ModelError
from core.export.change import changed_rows, delta_rows, merged_rows
from core.export.plan import PlannedTensor
from core.export.shards import TensorReader, TensorRecord, TensorSpec
from core.export.wanted import Change
from core.export.workers import Workers
from core.lora.peft_keys import LoraPair

BLOCKS = [(start, start + 1) for start in range(40)]


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_blocks_come_in_order_from_several_threads(two_threads: object) -> None:
    met = threading.Barrier(2, timeout=30)
    names: set[str] = set()

    def compute(reader: TensorReader, start: int, stop: int) -> tuple[int, int]:
        if start < 2:
            met.wait()  # both are at work at the same time
        assert torch.get_num_threads() == 1
        names.add(threading.current_thread().name)
        return start, stop

    with Workers() as workers:
        assert list(workers.each(compute, BLOCKS, Control())) == BLOCKS
    assert len(names) == 2
    assert torch.get_num_threads() == 2


def test_what_a_thread_raises_reaches_the_caller_and_ends_the_rest() -> None:
    done: list[int] = []

    def compute(reader: TensorReader, start: int, stop: int) -> int:
        done.append(start)
        if start == 3:
            raise ModelError("damaged")
        return start

    with pytest.raises(ModelError, match="damaged"), Workers() as workers:
        list(workers.each(compute, BLOCKS, Control()))
    assert len(done) < len(BLOCKS)


def test_a_stop_is_heard_between_blocks() -> None:
    control = Control()
    with pytest.raises(Cancelled), Workers() as workers:
        for number, _ in enumerate(workers.each(lambda reader, start, stop: start, BLOCKS, control)):
            if number == 2:
                control.stop()


def test_written_bytes_reach_the_disk_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("core.export.workers._SYNC_BYTES", 10)
    monkeypatch.setattr("core.export.workers.os.fsync", synced.append)
    with Workers() as workers, open(tmp_path / "file", "wb") as file:
        workers.written(file, file.write(b"123456"))
        assert synced == []
        workers.written(file, file.write(b"123456"))
        workers.wait()
        assert synced == [file.fileno()]

        def full(handle: int) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr("core.export.workers.os.fsync", full)
        workers.written(file, 12)
        with pytest.raises(OSError, match="No space"):
            workers.wait()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_sixteen_bits_are_those_of_fp64(dtype: torch.dtype, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pair = LoraPair(torch.randn(8, 96, generator=generator), torch.randn(64, 8, generator=generator), 0.02)
    shape = (96, 64) if transposed else (64, 96)
    weight = (0.1 * torch.randn(shape, generator=generator)).to(dtype)
    name = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    record = TensorRecord("w", name, shape, Path("unused"), 0, 2 * weight.numel())
    tensor = PlannedTensor(TensorSpec("w", name, shape), record, "w", Change(pair=pair), transposed)
    kept = weight.clone()
    merged = merged_rows(tensor, weight, 0, shape[0])
    assert torch.equal(weight, kept)
    exact = delta_rows(pair, weight, 0, shape[0], transposed)
    torch.testing.assert_close(merged, weight.float() + exact, rtol=1e-6, atol=1e-7)
    assert (merged.to(dtype) == (weight.float() + exact).to(dtype)).float().mean() > 0.999
    again, delta = changed_rows(tensor, weight, 0, shape[0])
    assert torch.equal(again, merged)
    torch.testing.assert_close(delta, exact, rtol=1e-6, atol=1e-7)
