"""A number of a merged file is right if fp64 rounds to it, or if it lies in the middle for all that fp32 can tell."""

from pathlib import Path

import pytest
import torch
from export_help import build_run
from test_receipt import merged_case
from tiny_models import build_tiny, some_quick
from torch import Tensor

from bench.draining import finish
from core.control import Control
from core.errors import ModelError
from core.export.change import delta_rows
from core.export.receipt import merged_receipt
from core.export.rounding import settled_update
from core.lora.peft_keys import LoraPair


def random_update(shape: tuple[int, ...], transposed: bool, dora: bool, dtype: torch.dtype) -> tuple[LoraPair, Tensor]:
    """An update of rank 8 and a weight of `shape` in `dtype`."""
    generator = torch.Generator().manual_seed(0)
    *experts, rows, columns = shape
    out, inputs = (columns, rows) if transposed else (rows, columns)
    lora_a = torch.randn(*experts, 8, inputs, generator=generator)
    lora_b = torch.randn(*experts, out, 8, generator=generator)
    magnitude = 1 + torch.rand(out, generator=generator) if dora else None
    weight = (0.1 * torch.randn(shape, generator=generator)).to(dtype)
    return LoraPair(lora_a, lora_b, 0.02, magnitude), weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "transposed", "dora"), [
    ((300, 700), False, False), ((700, 300), True, False), ((300, 700), False, True), ((700, 300), True, True),
    ((3, 200, 300), False, False), ((3, 200, 300), True, False)])
def test_either_neighbour_of_a_middle_is_right_and_no_other_number(
        shape: tuple[int, ...], transposed: bool, dora: bool, dtype: torch.dtype,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.export.shards.CHANGED_BYTES", 100_000)  # several blocks
    pair, weight = random_update(shape, transposed, dora, dtype)
    delta = delta_rows(pair, weight.double(), 0, shape[0], transposed)
    right = (weight.double() + delta).to(dtype)
    by_fp32 = (weight.float() + delta * (1 + 2.0**-23)).to(dtype)  # a little beside, as another order of the sum is
    assert 0 < (right != by_fp32).sum() < 1e-3 * right.numel()
    assert torch.equal(settled_update(pair, weight, right, transposed, dtype), right)
    assert torch.equal(settled_update(pair, weight, by_fp32, transposed, dtype), by_fp32)

    neighbour = (right.view(torch.int16) + 1).view(dtype)
    settled = settled_update(pair, weight, neighbour, transposed, dtype)
    assert (settled == right).float().mean() > 0.99  # the rest are middles, where the neighbour is right as well
    assert (settled == right).logical_or(settled == neighbour).all()


def test_a_weight_of_another_shape_is_refused() -> None:
    pair, weight = random_update((4, 6), False, False, torch.bfloat16)
    with pytest.raises(ModelError, match=r"weight of \[4, 6\] as \[4, 5\]"):
        settled_update(pair, weight, weight[:, :5], False, torch.bfloat16)


@pytest.mark.parametrize("whole", [True, pytest.param(False, marks=pytest.mark.full)])
@pytest.mark.parametrize("family", some_quick(["llama", "gpt2", "phi3", "mixtral"], ["gpt2"]))
def test_a_merge_into_16_bits_answers_to_the_bit_like_its_rounded_weights(
        family: str, whole: bool, tmp_path: Path) -> None:
    """Of a base that is stored in 16 bits, as most are; its merge is computed in fp32, the receipt's in fp64."""
    made = build_run(tmp_path / "run", build_tiny(family, tmp_path / "base", dtype=torch.bfloat16))
    case = merged_case(made, tmp_path / "out", "base")
    receipt = finish(merged_receipt(case, tmp_path / "out", Control(), whole=whole))
    assert receipt.passed, receipt.explanation
    assert receipt.dtype == "bf16" and receipt.largest_difference == 0.0
