"""Merged files against peft's own merge, in every family, type and layout."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_help import Made, build_run, run_export
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, some_quick
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.control import Control
from core.errors import AdapterError, Cancelled, ModelError
from core.export.keys import match_keys, skeleton
from core.export.plan import plan_merge
from core.export.shards import read_checkpoint
from core.jobs import Export
from core.lora.adapter_file import LoraPair, read_adapter
from core.lora.peft_keys import Contents


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def merged(made: Made, out: Path, **options: object) -> Path:
    run_export(Export(made.run.path, "merged", out, receipt=False, **options))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_equals_the_merge_of_peft(family: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    made = build_run(tmp_path / "run", bases(family))
    out = merged(made, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, str(made.run.adapter)).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 1e-6, name


def test_keeps_shards_index_and_what_lies_beside_the_weights(made: Made, tmp_path: Path) -> None:
    out = merged(made, tmp_path / "out")
    assert sorted(path.name for path in out.glob("*.safetensors")) == sorted(
        path.name for path in made.base.glob("*.safetensors"))
    name = "model.safetensors.index.json"
    assert json.loads((out / name).read_text()) == json.loads((made.base / name).read_text())
    assert json.loads((out / "config.json").read_text()) == json.loads((made.base / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (made.base / name).read_bytes()
    for shard in made.base.glob("*.safetensors"):
        assert (out / shard.name).read_bytes()[8:60] == shard.read_bytes()[8:60]  # the same metadata first
        assert load_file(out / shard.name).keys() == load_file(shard).keys()


@pytest.mark.parametrize(("dtype", "torch_dtype", "name"), [
    ("fp32", torch.float32, "float32"), ("bf16", torch.bfloat16, "bfloat16"), ("fp16", torch.float16, "float16")])
def test_number_types(made: Made, tmp_path: Path, dtype: str, torch_dtype: torch.dtype, name: str) -> None:
    out = merged(made, tmp_path / "out", dtype=dtype)
    exact = all_tensors(merged(made, tmp_path / "exact", dtype="fp32"))
    found = all_tensors(out)
    for key, tensor in found.items():
        assert torch.equal(tensor, exact[key].to(torch_dtype)), key
    assert json.loads((out / "config.json").read_text())["dtype"] == name
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch_dtype


def test_own_shard_size(made: Made, tmp_path: Path) -> None:
    out = merged(made, tmp_path / "out", shard_bytes=200_000)
    shards = sorted(out.glob("*.safetensors"))
    assert [path.name for path in shards] == [f"model-{n:05d}-of-{len(shards):05d}.safetensors"
                                              for n in range(1, len(shards) + 1)]
    assert all(sum(tensor.nbytes for tensor in load_file(path).values()) <= 200_000 for path in shards)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert index == {name: path.name for path in shards for name in load_file(path)}
    AutoModelForCausalLM.from_pretrained(out)
    single = merged(made, tmp_path / "single", shard_bytes=10**9)
    assert [path.name for path in single.glob("model*")] == ["model.safetensors"]
    assert all(torch.equal(tensor, all_tensors(out)[name]) for name, tensor in all_tensors(single).items())


def test_a_shared_output_layer_stays_shared(made: Made, tmp_path: Path) -> None:
    out = merged(made, tmp_path / "out")
    assert "lm_head.weight" not in all_tensors(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize(("family", "targets"), [
    ("llama", r"lm_head|.*q_proj"), pytest.param("gpt2", r"lm_head|.*c_attn", marks=pytest.mark.full)])
def test_an_adapted_shared_output_layer_becomes_its_own(family: str, targets: str, bases: Callable[[str], Path],
                                                        tmp_path: Path) -> None:
    made = build_run(tmp_path / "run", bases(family), targets)
    values, receipt, _ = run_export(Export(made.run.path, "merged", tmp_path / "out", dtype="bf16"))
    assert receipt is not None
    assert values["passed"], receipt.explanation
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    pair = read_adapter(made.run.adapter).pairs["lm_head"]
    embedding = model.get_input_embeddings().weight
    difference = model.lm_head.weight - embedding - pair.delta()
    assert difference.abs().max() < 0.01
    assert (model.lm_head.weight - embedding).abs().max() > 0.02


def without_prefix(base: Path, folder: Path, prefix: str) -> Path:
    """The same model as a checkpoint of its inner model, whose keys lack the prefix."""
    folder.mkdir()
    for path in base.iterdir():
        if path.suffix != ".safetensors" and not path.name.endswith("index.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    save_file({name.removeprefix(prefix): tensor for name, tensor in all_tensors(base).items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_keys_without_the_prefix_of_the_inner_model(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = without_prefix(bases("gpt2"), tmp_path / "base", "transformer.")
    made = build_run(tmp_path / "run", base)
    values, receipt, _ = run_export(Export(made.run.path, "merged", tmp_path / "out"))
    assert receipt is not None
    assert values["passed"], receipt.explanation
    assert "h.0.attn.c_attn.weight" in all_tensors(tmp_path / "out")


def test_a_pair_without_a_home_is_named(bases: Callable[[str], Path]) -> None:
    checkpoint = read_checkpoint(bases("llama"))
    keys = match_keys(skeleton(bases("llama")), checkpoint.tensors)
    stray = LoraPair(torch.zeros(4, 64), torch.zeros(64, 4), 1.0)
    with pytest.raises(AdapterError, match=r"model\.layers\.9\.self_attn\.q_proj"):
        plan_merge(checkpoint, keys, Contents({"model.layers.9.self_attn.q_proj": stray}), "base")
    with pytest.raises(AdapterError, match=r"down_proj.*\(64, 64\)"):
        plan_merge(checkpoint, keys, Contents({"model.layers.0.mlp.down_proj": stray}), "base")


def test_numbers_too_large_for_fp16_are_refused_by_name(bases: Callable[[str], Path], tmp_path: Path) -> None:
    made = build_run(tmp_path / "run", bases("qwen3"), "q-v", strength=1e7)
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.[qv]_proj\.weight.*F16") as caught:
        merged(made, tmp_path / "out", dtype="fp16")
    assert "bf16" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["run"]


def test_a_sum_that_is_not_finite_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    made = build_run(tmp_path / "run", bases("qwen3"), "q-v", strength=1e36)
    config = made.run.adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 1e9'))
    with pytest.raises(ModelError, match="not finite"):
        merged(made, tmp_path / "out", dtype="fp32")
    assert not (tmp_path / "out").exists()


def test_the_merged_tokenizer_has_the_chat_template(made: Made, tmp_path: Path) -> None:
    out = merged(made, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(made.base).chat_template


MEASURE = textwrap.dedent("""
    import json, resource, struct, sys
    from pathlib import Path
    import torch
    from core.control import Control
    from core.export.keys import ModelKeys
    from core.export.merge import verify_merged, write_merged
    from core.export.plan import plan_merge
    from core.export.shards import read_checkpoint
    from core.lora.peft_keys import Contents, LoraPair

    base, out, rows = Path(sys.argv[1]), Path(sys.argv[2]), 3072
    places = {}
    for number in range(4):
        name, shape = f"layers.{number}.weight", [rows, rows]
        header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * rows * rows]}}).encode()
        with open(base / f"model-{number}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + 4 * rows * rows)  # a sparse file of zeros
        places[name] = f"model-{number}.safetensors"
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    torch.manual_seed(0)
    pairs = {name.removesuffix(".weight"): LoraPair(torch.randn(8, rows), torch.randn(rows, 8), 0.1) for name in places}
    keys = ModelKeys({name: name for name in places}, {}, {}, frozenset(), {name: (rows, rows) for name in places})
    checkpoint = read_checkpoint(base)
    plan = plan_merge(checkpoint, keys, Contents(pairs), "bf16")
    torch.ones(2048, 2048).double() @ torch.ones(2048, 2048).double()  # what the matrix product itself sets up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in write_merged(plan, out, Control()):
        pass
    report = yield_from = None
    run = verify_merged(plan, read_checkpoint(out), Control())
    try:
        while True:
            next(run)
    except StopIteration as end:
        report = end.value
    assert not report.damaged
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, plan.nbytes)
""")


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="the resource module is not on Windows")
def test_memory_is_that_of_a_few_blocks(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "out").mkdir()
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / "base"), str(tmp_path / "out")],
                          cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, written = map(int, done.stdout.split())
    assert written == 4 * 2 * 3072**2
    assert grown < 120 * 2**20, f"{grown:,} bytes for a base of {4 * 4 * 3072**2:,}"


def test_a_stop_ends_a_merge_at_once(made: Made, tmp_path: Path) -> None:
    control = Control()
    control.stop()
    with pytest.raises(Cancelled):
        run_export(Export(made.run.path, "merged", tmp_path / "out"), control)
    assert not (tmp_path / "out").exists()
