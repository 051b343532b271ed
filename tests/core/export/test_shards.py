from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import ModelError
from core.export.shards import (
    TensorReader,
    TensorSpec,
    in_file_order,
    read_checkpoint,
    read_shard,
    row_blocks,
    write_shard,
)

TENSORS = {
    "odd": torch.arange(3, dtype=torch.uint8), "half": torch.randn(5, 3).half(), "brain": torch.randn(7).bfloat16(),
    "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "whole": torch.randn(4, 6), "flag": torch.tensor([True]),
}
NAMES = {torch.uint8: "U8", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.bool: "BOOL"}


def write(path: Path) -> None:
    specs = [TensorSpec(name, NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in TENSORS.items()]
    ordered = [specs[position] for position in in_file_order(specs)]
    with write_shard(path, ordered, {"format": "pt"}) as writer:
        for spec in ordered:
            writer.write(TENSORS[spec.name])


def test_what_is_written_piece_by_piece_is_read_by_safetensors(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_rows_are_read_in_pieces(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    records = read_checkpoint(tmp_path).tensors
    with TensorReader() as reader:
        assert torch.equal(reader.rows(records["half"], 1, 4), TENSORS["half"][1:4])
        for name, tensor in TENSORS.items():
            assert torch.equal(reader.whole(records[name]), tensor)


def test_a_shard_that_ends_early_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        read_shard(path)


def test_a_writer_that_misses_bytes_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), write_shard(tmp_path / "x", [TensorSpec("a", "F32", (4,))], {}) as writer:
        writer.write(torch.zeros(3))
    assert list(tmp_path.iterdir()) == []


def test_blocks_cover_all_rows_once() -> None:
    blocks = list(row_blocks(1000, 3_000_000))
    assert blocks[0] == (0, 1)
    assert [row for start, stop in blocks for row in range(start, stop)] == list(range(1000))
    assert list(row_blocks(0, 5)) == []
