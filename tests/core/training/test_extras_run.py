"""Runs with a prefix and bottleneck adapters, alone and beside other methods: trained, resumed, asked, exported."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import build_tiny, some_quick
from transformers import AutoModelForCausalLM

from core.adapter_folder import adapter_folder_bytes, is_adapter_folder, named_base
from core.config import RunConfig, parse_config
from core.control import Control
from core.errors import AdapterError, ConfigError, CoreError
from core.estimate import estimate
from core.events import Event, Planned, ReceiptReady, Result, StepDone
from core.export.export import export
from core.export.versions import AdapterCase
from core.jobs import Export, Generate, Resume, Train
from core.lora.adapter_file import read_adapter
from core.lora.attach import load_adapter
from core.lora.inject import remove
from core.models.inspect import read_card
from core.models.load import load_model
from core.run_problems import problems
from core.runs.folder import RunFolder
from core.runs.history import summarise
from core.training.checkpoint import damage
from core.training.generate import generate
from core.training.loop import resume, train

IDS = torch.arange(20, 110)[None]
PREFIX = {"prefix": {"length": 6}}
NETWORK = {"prefix": {"length": 6, "projection": True, "projection_size": 16}}
BOTTLENECK = {"bottleneck": {"size": 8}}
NONE = {"method": "none"}
LORA = {"rank": 4, "dropout": 0.1}
KINDS = {
    "prefix": (NONE, PREFIX), "network": (NONE, NETWORK), "bottleneck": (NONE, BOTTLENECK),
    "both": (NONE, PREFIX | BOTTLENECK), "lora and both": (LORA, PREFIX | BOTTLENECK),
    "dora and prefix": ({"method": "dora", "rank": 2}, PREFIX),
}


def _config(model: Path, data: Path, kind: str, **training: object) -> RunConfig:
    adapter, tables = KINDS[kind]
    training = {"max_steps": 12, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "device": "cpu",
                "dtype": "fp32"} | training
    return parse_config({"model": {"path": str(model)}, "adapter": adapter, "training": training, **tables,
                         "data": {"train": [str(data)], "validation_fraction": 0.1}})


def _of(kind: type, events: list[Event]) -> list:
    return [event for event in events if isinstance(event, kind)]


def _logits(base: Path, adapter: Path) -> torch.Tensor:
    model = load_model(base, torch.device("cpu"), torch.float32)
    load_adapter(adapter, model)
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_learns_and_the_estimate_tells_the_truth(kind: str, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, kind)
    events = list(train(Train(config, tmp_path / "run"), Control()))
    run = RunFolder(tmp_path / "run")
    steps = _of(StepDone, events)
    assert steps[-1].loss < 0.9 * steps[0].loss
    assert run.config().training.packing == "on"
    assert problems(config, read_card(tiny_model)) == []
    found = estimate(config, read_card(tiny_model))
    assert found.trainable_parameters == _of(Planned, events)[0].trainable_parameters
    assert found.adapter_bytes == adapter_folder_bytes(run.adapter)
    assert is_adapter_folder(run.adapter)
    assert named_base(run.adapter) == str(tiny_model)
    assert summarise(run).method == " + ".join(config.trained)
    assert not damage(run.checkpoint_folders()[-1])
    (run.checkpoint_folders()[-1] / "state.json").write_text("{}")
    assert "state.json" in damage(run.checkpoint_folders()[-1])


@pytest.mark.parametrize("family", some_quick(["gemma3", "gpt2", "gpt_neox", "phi3"]))
def test_all_three_together_in_other_families(family: str, data: Path, tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    config = _config(base, data, "lora and both", max_steps=6)
    events = list(train(Train(config, tmp_path / "run"), Control()))
    steps = _of(StepDone, events)
    assert steps[-1].loss < steps[0].loss
    assert RunFolder(tmp_path / "run").config().training.packing == "on"
    assert estimate(config, read_card(base)).trainable_parameters == _of(Planned, events)[0].trainable_parameters


@pytest.mark.parametrize("kind", [pytest.param("network", marks=pytest.mark.full), "lora and both"])
def test_a_stopped_run_goes_on_to_the_same_files_bit_for_bit(kind: str, tiny_model: Path, data: Path,
                                                             tmp_path: Path) -> None:
    config = _config(tiny_model, data, kind)
    list(train(Train(config, tmp_path / "whole"), Control()))
    control = Control()
    for event in train(Train(config, tmp_path / "stopped"), control):
        if isinstance(event, StepDone) and event.step == 5:
            control.stop()
    list(resume(Resume(tmp_path / "stopped"), Control()))
    whole, resumed = RunFolder(tmp_path / "whole").adapter, RunFolder(tmp_path / "stopped").adapter
    tensors = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert len(tensors) == (3 if kind == "lora and both" else 1)
    for path in tensors:
        assert (whole / path).read_bytes() == (resumed / path).read_bytes()


@pytest.mark.parametrize("packing", ["on", pytest.param("off", marks=pytest.mark.full)])
def test_packing_and_batches_change_nothing_but_the_speed(packing: str, tiny_model: Path, data: Path,
                                                          tmp_path: Path) -> None:
    config = _config(tiny_model, data, "lora and both", packing=packing, max_steps=3)
    config = config.model_copy(update={"adapter": config.adapter.model_copy(update={"dropout": 0.0})})
    single = config.model_copy(update={"training": config.training.model_copy(update={
        "packing": "auto", "batch_size": 1, "gradient_accumulation": 4})})
    first, second = ([step.loss for step in _of(StepDone, list(train(Train(item, tmp_path / name), Control())))]
                     for name, item in (("a", config), ("b", single)))
    assert first == pytest.approx(second, rel=1e-4)


@pytest.mark.parametrize("kind", ["prefix", "network", "lora and both"])
def test_peft_reads_the_parts_that_it_knows(kind: str, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    list(train(Train(_config(tiny_model, data, kind, max_steps=3), tmp_path / "run"), Control()))
    adapter = RunFolder(tmp_path / "run").adapter
    for part in ((adapter,) if kind != "lora and both" else (adapter, adapter / "prefix")):
        reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
                                              part).eval()
        alone = tmp_path / f"alone-{part.name}"
        alone.mkdir()
        for path in part.iterdir():
            if path.is_file():
                (alone / path.name).write_bytes(path.read_bytes())
        with torch.no_grad():
            torch.testing.assert_close(_logits(tiny_model, alone), reference(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [
    kind if kind == "lora and both" else pytest.param(kind, marks=pytest.mark.full) for kind in KINDS])
def test_chat_answers_as_whole_rows_do_and_the_base_stays_the_base(kind: str, tiny_model: Path, data: Path,
                                                                  tmp_path: Path) -> None:
    list(train(Train(_config(tiny_model, data, kind), tmp_path / "run"), Control()))
    question = (("user", "How many pizzas? 7"),)
    job = Generate(str(tiny_model), tmp_path / "run", {"base": question, "tuned": question}, max_new_tokens=10,
                   device="cpu", dtype="fp32")
    warm: dict[str, object] = {}
    together = list(generate(job, Control(), warm))[-1].values["answers"]
    assert list(generate(job, Control(), warm))[-1].values["answers"] == together  # the second time from memory
    base = Generate(str(tiny_model), None, {"base": question}, max_new_tokens=10, device="cpu", dtype="fp32")
    assert list(generate(base, Control()))[-1].values["answers"]["base"] == together["base"]
    assert together["tuned"] == _without_cache(tiny_model, tmp_path / "run" / "adapter", "How many pizzas? 7", 10)


def _without_cache(base: Path, adapter: Path, question: str, limit: int) -> str:
    from core.data.template import render_prompt
    from core.models.load import load_tokenizer
    from core.records import Message

    tokenizer, model = load_tokenizer(base), load_model(base, torch.device("cpu"), torch.float32)
    load_adapter(adapter, model)
    tokens = list(render_prompt([Message("user", question)], tokenizer))
    start = len(tokens)
    with torch.no_grad():
        while len(tokens) < start + limit:
            token = int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            tokens.append(token)
    return str(tokenizer.decode(tokens[start:], skip_special_tokens=True))


@pytest.mark.parametrize("kind", [
    kind if kind == "lora and both" else pytest.param(kind, marks=pytest.mark.full) for kind in KINDS])
def test_export_as_adapter_passes_its_receipt(kind: str, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    list(train(Train(_config(tiny_model, data, kind), tmp_path / "run"), Control()))
    for dtype in ("base", "bf16"):
        out = tmp_path / f"out-{dtype}"
        events = list(export(Export(tmp_path / "run", "adapter", out, dtype=dtype), Control()))
        receipt = _of(ReceiptReady, events)[0].receipt
        assert receipt.passed, receipt.explanation
        expected = _logits(tiny_model, tmp_path / "run" / "adapter")
        torch.testing.assert_close(_logits(tiny_model, out), expected, rtol=0, atol=0 if dtype == "base" else 0.5)
        assert all("base_path" not in path.read_text() for path in out.rglob("workbench.json"))
        card = (out / "README.md").read_text()
        assert ("sub-folders" in card) == (kind not in ("prefix", "network"))


@pytest.mark.full
def test_a_changed_export_does_not_pass(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    from core.export.receipt import adapter_receipt

    list(train(Train(_config(tiny_model, data, "lora and both", max_steps=3), tmp_path / "run"), Control()))
    adapter = RunFolder(tmp_path / "run").adapter
    list(export(Export(tmp_path / "run", "adapter", tmp_path / "out", receipt=False), Control()))
    mine, theirs = read_adapter(adapter), read_adapter(tmp_path / "out")
    assert theirs.extras.prefix is not None
    theirs.extras.prefix.values[0, 0] += 1
    case = AdapterCase(tiny_model, adapter, mine.pairs, tmp_path / "out", theirs.pairs, None, mine.extras,
                       theirs.extras)
    for whole in (True, False):
        stream, receipt = adapter_receipt(case, tmp_path / "out", Control(), whole=whole), None
        while receipt is None:
            try:
                next(stream)
            except StopIteration as end:
                receipt = end.value
        assert not receipt.passed
        assert "prefix differs" in receipt.explanation


def test_layer_by_layer_the_receipt_is_the_same(tiny_model: Path, data: Path, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    from core.export import receipt as receipts

    list(train(Train(_config(tiny_model, data, "lora and both", max_steps=3), tmp_path / "run"), Control()))
    monkeypatch.setattr(receipts, "fits_whole", lambda case: False)
    events = list(export(Export(tmp_path / "run", "adapter", tmp_path / "out", dtype="bf16"), Control()))
    receipt = _of(ReceiptReady, events)[0].receipt
    assert receipt.passed, receipt.explanation
    assert "layer by layer" in receipt.explanation


@pytest.mark.parametrize("kind", ["prefix", "bottleneck", "lora and both"])
def test_merging_is_refused_with_the_reason(kind: str, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    list(train(Train(_config(tiny_model, data, kind, max_steps=2), tmp_path / "run"), Control()))
    with pytest.raises(AdapterError, match="no change of the weights"):
        list(export(Export(tmp_path / "run", "merged", tmp_path / "out"), Control()))
    assert not (tmp_path / "out").exists()


def test_several_are_switched_on_one_base_and_two_prefixes_at_once_are_refused(tiny_model: Path, data: Path,
                                                                              tmp_path: Path) -> None:
    from core.lora.adapter_set import AdapterSet

    for name in ("a", "b"):
        list(train(Train(_config(tiny_model, data, "lora and both", max_steps=3, seed=ord(name)), tmp_path / name),
                   Control()))
    model = load_model(tiny_model, torch.device("cpu"), torch.float32)
    plain = model(IDS).logits
    adapters = AdapterSet(model)
    for name in ("a", "b"):
        adapters.load(name, tmp_path / name / "adapter")
    assert torch.equal(model(IDS).logits, plain)
    for name in ("a", "b", "a"):
        adapters.use({name: 1.0})
        torch.testing.assert_close(model(IDS).logits, _logits(tiny_model, tmp_path / name / "adapter"))
        with adapters.disabled():
            assert torch.equal(model(IDS).logits, plain)
    with pytest.raises(AdapterError, match="only one of them can count"):
        adapters.use({"a": 1.0, "b": 1.0})
    assert adapters.strengths == {"a": 1.0}
    adapters.drop("a")
    adapters.close()
    assert torch.equal(model(IDS).logits, plain)
    remove(model)


def test_what_can_not_work_is_told_at_its_field(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    card = read_card(tiny_model)
    config = _config(tiny_model, data, "prefix").model_copy(update={"prefix": None})
    assert [problem.field for problem in problems(config)] == ["adapter.method"]
    with pytest.raises(CoreError, match="Nothing would be trained"):
        list(train(Train(config, tmp_path / "run"), Control()))
    assert not (tmp_path / "run").exists()

    def fields(**bottleneck: object) -> list[str]:
        changed = parse_config({**config.model_dump(mode="json"), "bottleneck": bottleneck})
        return [problem.field for problem in problems(changed, card)]

    assert fields() == []
    assert fields(size=65) == ["bottleneck.size"]
    assert fields(first_layer=2, last_layer=1) == ["bottleneck.first_layer"]
    assert fields(first_layer=3) == ["bottleneck.first_layer"]
    full = parse_config({**config.model_dump(mode="json"), "adapter": {"method": "full"}, "prefix": {}})
    assert [problem.field for problem in problems(full, card)] == ["adapter.method"]
    with pytest.raises(ConfigError, match="Full fine-tuning"):
        list(train(Train(full, tmp_path / "run"), Control()))


def test_the_size_of_the_file_follows_the_number_type(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, "both", max_steps=2)
    config = config.model_copy(update={"adapter": config.adapter.model_copy(update={"save_dtype": "bf16"})})
    result = list(train(Train(config, tmp_path / "run"), Control()))[-1]
    assert isinstance(result, Result)
    folder = RunFolder(tmp_path / "run").adapter
    for path in folder.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    assert adapter_folder_bytes(folder) == estimate(config, read_card(tiny_model)).adapter_bytes
