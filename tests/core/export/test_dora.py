"""DoRA merged: against peft's merge, in every layout, with its receipt."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_help import build_run, run_export
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import FAMILIES, some_quick
from transformers import AutoModelForCausalLM

from bench.draining import finish
from core.config import DoraConfig
from core.control import Control
from core.export import change, merge
from core.export.keys import match_keys, skeleton
from core.export.plan import plan_merge
from core.export.receipt import TOLERANCE, adapter_receipt, merged_receipt
from core.export.shards import read_checkpoint
from core.export.source import find_source
from core.export.versions import AdapterCase, MergedCase
from core.jobs import Export
from core.lora.adapter_file import read_adapter
from core.lora.peft_keys import Contents


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_equals_the_merge_of_peft(family: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    made = build_run(tmp_path / "run", bases(family), method=DoraConfig)
    run_export(Export(made.run.path, "merged", tmp_path / "out", receipt=False))
    base = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, str(made.run.adapter)).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 1e-6, name


@pytest.mark.parametrize("family", some_quick(["llama", "gpt2"], ["llama"]))
@pytest.mark.parametrize("dtype", some_quick(["base", "bf16"], ["bf16"]))
@pytest.mark.parametrize("whole", [True, pytest.param(False, marks=pytest.mark.full)])
def test_the_receipt_is_green(family: str, dtype: str, whole: bool, bases: Callable[[str], Path],
                              tmp_path: Path) -> None:
    made = build_run(tmp_path / "run", bases(family), method=DoraConfig)
    out = tmp_path / "out"
    run_export(Export(made.run.path, "merged", out, dtype=dtype, receipt=False))  # type: ignore[arg-type]
    pairs = find_source(Export(made.run.path, "merged", out)).adapter.pairs
    checkpoint = read_checkpoint(made.base)
    keys = match_keys(skeleton(made.base), checkpoint.tensors)
    plan = plan_merge(checkpoint, keys, Contents(pairs), dtype)  # type: ignore[arg-type]
    case = MergedCase(made.base, made.run.adapter, pairs, out, plan, keys)
    receipt = finish(merged_receipt(case, out, Control(), whole=whole))
    assert receipt.passed, receipt.explanation
    assert receipt.largest_difference <= TOLERANCE
    assert (receipt.realised_delta_error < 1e-5) == (dtype == "base")


@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.full), False])
def test_the_adapter_itself_and_in_sixteen_bit(whole: bool, bases: Callable[[str], Path], tmp_path: Path) -> None:
    made = build_run(tmp_path / "run", bases("gpt2"), method=DoraConfig)
    for dtype in ("base", "bf16"):
        out = tmp_path / dtype
        run_export(Export(made.run.path, "adapter", out, dtype=dtype, receipt=False))  # type: ignore[arg-type]
        case = AdapterCase(made.base, made.run.adapter, read_adapter(made.run.adapter).pairs, out,
                           read_adapter(out).pairs)
        receipt = finish(adapter_receipt(case, out, Control(), whole=whole))
        assert receipt.passed, receipt.explanation
        assert (receipt.realised_delta_error == 0.0) == (dtype == "base")
        magnitudes = {name: tensor.dtype for name, tensor in load_file(out / "adapter_model.safetensors").items()
                      if "magnitude" in name}
        assert magnitudes and set(magnitudes.values()) == {torch.float32}  # rounding them would hide the change


def test_a_transposed_weight_is_merged_alike_in_any_blocks(bases: Callable[[str], Path], tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    made = build_run(tmp_path / "run", bases("gpt2"), method=DoraConfig)
    run_export(Export(made.run.path, "merged", tmp_path / "whole", receipt=False))
    norms = []
    monkeypatch.setattr(merge, "output_norms", lambda *args: norms.append(change.output_norms(*args)) or norms[-1])
    monkeypatch.setattr(merge, "_blocks", lambda tensor: [(row, min(row + 5, tensor.source.rows))
                                                          for row in range(0, tensor.source.rows, 5)])
    run_export(Export(made.run.path, "merged", tmp_path / "cut", receipt=False))
    assert any(norm is not None for norm in norms)
    for path in (tmp_path / "whole").glob("*.safetensors"):
        cut = load_file(tmp_path / "cut" / path.name)
        for name, tensor in load_file(path).items():
            torch.testing.assert_close(cut[name], tensor, rtol=1e-7, atol=1e-8)
