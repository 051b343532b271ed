"""A receipt is green for what is right and red for anything else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_help import Made, build_run, run_export
from safetensors.torch import load_file, save_file
from tiny_models import some_quick

from bench.draining import finish
from core.control import Control
from core.errors import Cancelled
from core.export import probe
from core.export.export import find_source
from core.export.keys import match_keys, skeleton
from core.export.plan import plan_merge
from core.export.receipt import TOLERANCE, adapter_receipt, merged_receipt
from core.export.shards import read_checkpoint
from core.export.versions import AdapterCase, MergedCase
from core.jobs import Export
from core.lora.adapter_file import read_adapter


def merged_case(made: Made, out: Path, dtype: str) -> MergedCase:
    run_export(Export(made.run.path, "merged", out, dtype=dtype, receipt=False))  # type: ignore[arg-type]
    source = find_source(Export(made.run.path, "merged", out))
    checkpoint = read_checkpoint(made.base)
    keys = match_keys(skeleton(made.base), checkpoint.tensors)
    plan = plan_merge(checkpoint, keys, source.adapter.contents, dtype)  # type: ignore[arg-type]
    return MergedCase(made.base, made.run.adapter, source.adapter.pairs, out, plan, keys)


def tamper(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors[name] = change(tensors[name]).contiguous()
            save_file(tensors, path, metadata={"format": "pt"})
            return
    raise AssertionError(name)


@pytest.mark.parametrize("dtype", some_quick(["base", "bf16", "fp16"], ["bf16"]))
@pytest.mark.parametrize("family", some_quick(["gpt2", "gemma3"], ["gemma3"]))
def test_a_right_export_passes(family: str, dtype: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    made = build_run(tmp_path / "run", bases(family))
    case = merged_case(made, tmp_path / "out", dtype)
    receipt = finish(merged_receipt(case, tmp_path / "out", Control()))
    assert receipt.passed, receipt.explanation
    assert receipt.largest_difference <= TOLERANCE
    assert len(receipt.rows) == len(probe.PROMPTS)
    if dtype == "base":
        assert receipt.realised_delta_error < 1e-5
        assert receipt.first_choice_agreement == 1.0
        assert all(row.text_adapter == row.text_export for row in receipt.rows)
    else:
        assert 1e-4 < receipt.realised_delta_error < 0.2
        assert dtype in receipt.explanation


@pytest.mark.full
@pytest.mark.parametrize("dtype", [pytest.param("base", marks=pytest.mark.full), "bf16"])
def test_layer_by_layer_gives_the_same_receipt(dtype: str, made: Made, tmp_path: Path) -> None:
    case = merged_case(made, tmp_path / "out", dtype)
    whole = finish(merged_receipt(case, tmp_path / "out", Control(), whole=True))
    layered = finish(merged_receipt(case, tmp_path / "out", Control(), whole=False))
    assert layered.passed, layered.explanation
    assert "layer by layer" in layered.explanation
    for left, right in zip(whole.rows, layered.rows, strict=True):
        assert left.text_adapter.startswith(right.text_adapter.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert layered.realised_delta_error == whole.realised_delta_error


@pytest.mark.parametrize("whole", [True, False])
def test_a_changed_tensor_gives_a_red_receipt(whole: bool, made: Made, tmp_path: Path) -> None:
    case = merged_case(made, tmp_path / "out", "base")
    tamper(tmp_path / "out", "model.layers.1.mlp.up_proj.weight", lambda tensor: tensor * 1.01)
    receipt = finish(merged_receipt(case, tmp_path / "out", Control(), whole=whole))
    assert not receipt.passed
    assert "model.layers.1.mlp.up_proj.weight" in receipt.explanation
    assert receipt.largest_difference > TOLERANCE


def test_one_number_that_no_prompt_touches_is_found(made: Made, tmp_path: Path) -> None:
    case = merged_case(made, tmp_path / "out", "bf16")

    def one_bit(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(torch.int16)[1, 7] ^= 1
        return tensor

    tamper(tmp_path / "out", "model.embed_tokens.weight", one_bit)
    receipt = finish(merged_receipt(case, tmp_path / "out", Control()))
    assert not receipt.passed
    assert "model.embed_tokens.weight" in receipt.explanation


def test_an_export_that_can_not_be_loaded_is_red(made: Made, tmp_path: Path) -> None:
    case = merged_case(made, tmp_path / "out", "base")
    (tmp_path / "out" / "config.json").write_text("{}")
    receipt = finish(merged_receipt(case, tmp_path / "out", Control()))
    assert not receipt.passed
    assert "could not be compared" in receipt.explanation


@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.full), False])
def test_adapters_as_they_are_and_rounded(whole: bool, made: Made, tmp_path: Path) -> None:
    for dtype in ("base", "bf16"):
        out = tmp_path / dtype
        run_export(Export(made.run.path, "adapter", out, dtype=dtype, receipt=False))  # type: ignore[arg-type]
        pairs, exported = read_adapter(made.run.adapter).pairs, read_adapter(out).pairs
        case = AdapterCase(made.base, made.run.adapter, pairs, out, exported)
        receipt = finish(adapter_receipt(case, out, Control(), whole=whole))
        assert receipt.passed, receipt.explanation
        assert (receipt.realised_delta_error == 0.0) == (dtype == "base")


def test_a_changed_adapter_is_red(made: Made, tmp_path: Path) -> None:
    run_export(Export(made.run.path, "adapter", tmp_path / "out", receipt=False))
    tamper(tmp_path / "out", "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", lambda x: x * 1.1)
    case = AdapterCase(made.base, made.run.adapter, read_adapter(made.run.adapter).pairs, tmp_path / "out",
                       read_adapter(tmp_path / "out").pairs)
    receipt = finish(adapter_receipt(case, tmp_path / "out", Control()))
    assert not receipt.passed
    assert "model.layers.0.self_attn.q_proj" in receipt.explanation
    assert receipt.realised_delta_error == pytest.approx(0.1 * _share(case), rel=1e-3)


def _share(case: AdapterCase) -> float:
    """The part of the first query projection in the whole update."""
    norms = {name: float(pair.delta().norm()) for name, pair in case.pairs.items()}
    return norms["model.layers.0.self_attn.q_proj"] / sum(norm**2 for norm in norms.values()) ** 0.5


def test_a_stop_is_heard(made: Made, tmp_path: Path) -> None:
    case = merged_case(made, tmp_path / "out", "base")
    control = Control()
    events = merged_receipt(case, tmp_path / "out", control)
    with pytest.raises(Cancelled):
        for event in events:
            if getattr(event, "stage", "") == "Comparing answers":
                control.stop()
