"""Every method on every family against peft: files both ways, gradients, steps, merged weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matrix import CELLS, METHODS
from safetensors.torch import load_file
from table import BOUNDS
from torch import Tensor
from twins import Base, Twins, logits_of

from core.config import QLoraConfig
from core.control import Control
from core.export.keys import match_keys
from core.export.merge import write_merged
from core.export.plan import plan_merge
from core.export.shards import read_checkpoint
from core.lora.adapter_file import read_adapter
from core.lora.attach import load_adapter

Note = Callable[[str, float], None]
# In the quick tests: every method on one family, and layers that are stored otherwise; all the rest with the long tests
QUICK = {(method, "llama") for method in METHODS} | {
    ("lora", "gemma3"), ("lora", "bert"), ("bias", "gpt2"), ("bias_lora_only", "qwen2"), ("dora", "gpt2")}


@pytest.mark.parametrize(("method", "family"), [
    pytest.param(*cell, marks=[] if cell in QUICK else pytest.mark.full) for cell in CELLS])
def test_cell(twins: Twins, measured: Note, tmp_path: Path) -> None:
    files_both_ways(twins, measured, tmp_path)
    measured("gradients, fp32", twins.gradient_difference())
    twins.train(10)
    rounding = twins.weight_difference()
    measured("ten steps, fp32", rounding)
    twins.copy()  # so that what follows starts from the same numbers again
    if not twins.method.merge_gap(twins.base.family):
        merged_weights(twins, measured, tmp_path)
    if twins.method.kind is not QLoraConfig:  # whose products are computed in fp32
        measured("gradients", twins.double().gradient_difference())
    # AdamW makes a whole step of a gradient that is nearly zero, so there the rounding of fp32 may decide
    if rounding > BOUNDS["ten steps"]:
        twins.train(10)
        rounding = twins.weight_difference()
    measured("ten steps", rounding)


def files_both_ways(twins: Twins, measured: Note, tmp_path: Path) -> None:
    """An adapter from ours to peft, and from peft to ours."""
    read = twins.read_by_peft(twins.write(tmp_path / "ours"))
    measured("ours to peft", difference(logits_of(twins.ours), logits_of(read)))
    model = twins.base.ours(twins.method)
    load_adapter(twins.write_peft(tmp_path / "peft"), model)
    measured("peft to ours", difference(logits_of(model), logits_of(twins.peft)))


def merged_weights(twins: Twins, measured: Note, tmp_path: Path) -> None:
    """The files that we merge beside peft's own merge."""
    adapter = twins.write(tmp_path / "trained")
    merged = merged_by_us(twins.base, adapter, tmp_path / "merged")
    # peft would quantise its sum anew; the original weights are compared
    theirs = read_on(twins.base, adapter) if twins.method.kind is QLoraConfig else copy.deepcopy(twins.peft)
    expected = theirs.merge_and_unload().state_dict()
    measured("merged", max(difference(tensor, expected[name]) for name, tensor in merged.items()))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest of any number."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def merged_by_us(base: Base, adapter: Path, out: Path) -> dict[str, Tensor]:
    """The merged files, by the names of the model's parameters."""
    checkpoint = read_checkpoint(base.folder)
    keys = match_keys(base.plain(), checkpoint.tensors)
    out.mkdir()
    for _ in write_merged(plan_merge(checkpoint, keys, read_adapter(adapter).contents, "fp32"), out, Control()):
        pass
    tensors = {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}
    return {keys.parameter_of.get(name, name): tensor for name, tensor in tensors.items()}


def read_on(base: Base, adapter: Path) -> Any:
    """An adapter on the base in its original weights, as peft reads it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base.plain(), adapter).eval()
