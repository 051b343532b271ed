"""Full fine-tuning: as plain AdamW on the whole model, resumed bit for bit, a whole model at the end."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import build_tiny, some_quick

from bench.draining import finish
from core.base_memory import trained_numbers
from core.config import FullConfig, RunConfig, parse_config
from core.control import Control
from core.data.batching import pad, step_rows
from core.errors import AdapterError, ConfigError, CoreError
from core.estimate import estimate
from core.events import Event, Finished, Planned, StepDone
from core.jobs import Generate, Resume, Train
from core.lora.full import load_values
from core.lora.method import Material
from core.models.inspect import read_card
from core.models.load import load_model, load_tokenizer
from core.models.save import save_model, stored_tensors
from core.run_problems import problems
from core.runs.folder import RunFolder
from core.runs.history import summarise
from core.targets import select_targets
from core.training import final
from core.training.checkpoint import OPTIMIZER_NAME
from core.training.generate import generate
from core.training.loop import resume, train
from core.training.loss import chunked_cross_entropy, direct_loss
from core.training.schedule import learning_rate_at
from core.training.setup import prepare

CPU = torch.device("cpu")
FAMILIES = ["llama", "gpt2", "gemma2", "gpt_neox"]


def _config(model: Path, data: Path, targets: Any = "all", **training: Any) -> RunConfig:
    training = {"max_steps": 10, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2, "device": "cpu"} | training
    return parse_config({"model": {"path": str(model)}, "adapter": {"method": "full", "target_modules": targets},
                         "training": training, "data": {"train": [str(data)], "validation_fraction": 0.1}})


def _run(config: RunConfig, folder: Path) -> list[Event]:
    return list(train(Train(config, folder), Control()))


def _of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_ten_steps_are_those_of_plain_adamw_on_the_whole_model(data: Path, tmp_path: Path, family: str) -> None:
    config = _config(build_tiny(family, tmp_path / family), data, evaluate_every=0)
    _run(config, tmp_path / "run")
    setup = finish(prepare(config, Control()))  # only its rows are used
    plain = load_model(tmp_path / family, CPU, torch.float32).requires_grad_(True)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0,
                                  betas=(0.9, getattr(config.training, "adam_beta2", 0.999)))
    for step in range(10):
        rows = [setup.train[index] for index in step_rows(step, len(setup.train), 4, 0)]
        optimizer.zero_grad()
        losses = [direct_loss(plain, batch) for batch in pad(rows)]
        (torch.stack(losses).sum() / sum(int(row.supervised.sum()) for row in rows)).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, 10, config.training)
        optimizer.step()
    ours = load_model(tmp_path / "run" / "model", CPU, torch.float32)
    expected = dict(plain.named_parameters())
    differences = []
    for name, parameter in ours.named_parameters():
        # the bias of a key changes no attention: its gradient is next to nothing and AdamW makes steps of its sign
        differences.append((parameter - expected[name]).detach().abs().flatten())
        assert float(differences[-1].median()) < 1e-6, name
    assert float(torch.cat(differences).mean()) < 1e-6
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(ours(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-4)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_trained_head_gets_its_gradient_in_pieces(softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.training.loss.CHUNK_LOGITS", 150)
    torch.manual_seed(0)
    inputs = [torch.randn(17, 8, dtype=torch.float64), torch.randn(50, 8, dtype=torch.float64),
              torch.randn(50, dtype=torch.float64)]
    labels = torch.randint(0, 50, (17,))
    found = []
    for chunked in (True, False):
        hidden, weight, bias = (item.clone().requires_grad_(True) for item in inputs)
        if chunked:
            loss = chunked_cross_entropy(hidden, weight, bias, labels, softcap)
        else:
            logits = torch.nn.functional.linear(hidden, weight, bias)
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        (loss / 3).backward()
        found.append([item.grad for item in (hidden, weight, bias)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_killed_run_goes_on_to_the_same_model_bit_for_bit(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, checkpoint_every=3)
    _run(config, tmp_path / "whole")
    stream = train(Train(config, tmp_path / "killed"), Control())
    for event in stream:
        if isinstance(event, StepDone) and event.step == 8:
            break
    log = (tmp_path / "killed" / "events.jsonl").read_bytes()
    stream.close()
    (tmp_path / "killed" / "events.jsonl").write_bytes(log)
    list(resume(Resume(tmp_path / "killed"), Control()))
    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]


def test_the_run_leaves_a_whole_model_and_lean_checkpoints(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, evaluate_every=5, checkpoint_every=5)
    events = _run(config, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    card = read_card(run.model)
    assert _of(Finished, events)[0].path == run.model == run.final
    assert events[-1].values["model"] == str(run.model)
    assert not run.adapter.exists()
    assert card.parameters == read_card(tiny_model).parameters == _of(Planned, events)[0].trainable_parameters
    assert load_tokenizer(run.model).chat_template == load_tokenizer(tiny_model).chat_template
    found = estimate(config, read_card(tiny_model))
    assert found.trainable_parameters == card.parameters
    for checkpoint in run.checkpoint_folders():
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
        assert size == pytest.approx(found.checkpoint_bytes, rel=0.05)
    assert (run.model / "model.safetensors").stat().st_size == pytest.approx(found.adapter_bytes, rel=0.02)
    summary = summarise(run)
    assert (summary.method, summary.state) == ("full", "finished")
    best = load_file(run.checkpoint(events[-1].values["adapter_step"]) / OPTIMIZER_NAME)
    model = load_model(run.model, CPU, torch.float32)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, best[f"{name}.value"])


@pytest.mark.parametrize("targets", ["q-v", "all-linear", ["mlp"], ["layers.2", "embed_tokens"], r".*layernorm"])
def test_only_the_named_modules_move(tiny_model: Path, data: Path, tmp_path: Path, targets: Any) -> None:
    config = _config(tiny_model, data, targets, max_steps=2)
    events = _run(config, tmp_path / "run")
    chosen = {module.name for module in select_targets(read_card(tiny_model).modules, config.adapter)}
    before = dict(load_model(tiny_model, CPU, torch.float32).named_parameters())
    moved = 0
    for name, parameter in load_model(tmp_path / "run" / "model", CPU, torch.float32).named_parameters():
        is_chosen = name.rpartition(".")[0] in chosen
        assert torch.equal(parameter, before[name]) != is_chosen, name
        moved += parameter.numel() if is_chosen else 0
    assert moved == _of(Planned, events)[0].trainable_parameters
    card = read_card(tiny_model)
    assert moved == trained_numbers(card, select_targets(card.modules, config.adapter), config.adapter)


def test_it_answers_beside_its_base_from_the_run_and_from_a_checkpoint(tiny_model: Path, data: Path,
                                                                       tmp_path: Path) -> None:
    _run(_config(tiny_model, data, max_steps=20, learning_rate=5e-3, checkpoint_every=10), tmp_path / "run")
    question = (("user", "How many pizzas? 3"),)
    warm: dict[str, object] = {}
    texts = []
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-000020", tmp_path / "run" / "model"):
        job = Generate(str(tiny_model), path, {"base": question, "tuned": question}, max_new_tokens=8, device="cpu",
                       dtype="fp32")
        texts.append(list(generate(job, Control(), warm))[-1].values["answers"])
    assert texts[0] == texts[1] == texts[2]
    assert texts[0]["base"] != texts[0]["tuned"]
    alone = Generate(str(tiny_model), None, {"base": question}, max_new_tokens=8, device="cpu", dtype="fp32")
    assert list(generate(alone, Control(), warm))[-1].values["answers"]["base"] == texts[0]["base"]


def test_problems_are_told_before_the_start(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    card = read_card(tiny_model)
    found = problems(_config(tiny_model, data, dtype="bf16"), card)
    assert [(item.field, "fp32" in item.message) for item in found] == [("training.dtype", True)]
    assert problems(_config(tiny_model, data, ["nothing"]), card)[0].field == "adapter.target_modules"
    assert problems(_config(tiny_model, data), card) == []
    with pytest.raises(ConfigError, match="fp32"):
        _run(_config(tiny_model, data, dtype="bf16"), tmp_path / "run")


def test_a_disk_that_is_too_small_is_told_before_the_first_step(tiny_model: Path, data: Path, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final.files, "free_bytes", lambda path: 10**6)
    with pytest.raises(CoreError, match="free on this disk"):
        _run(_config(tiny_model, data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_model_is_refused_whole(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    _run(_config(tiny_model, data, max_steps=2), tmp_path / "run")
    other = load_model(build_tiny("qwen2", tmp_path / "other"), CPU, torch.float32)
    before = {name: parameter.clone() for name, parameter in other.named_parameters()}
    with pytest.raises(AdapterError, match="does not fit this model"):
        load_values(tmp_path / "run" / "checkpoints" / "step-000002" / OPTIMIZER_NAME, other)
    assert all(torch.equal(parameter, before[name]) for name, parameter in other.named_parameters())


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_a_saved_model_is_laid_out_as_its_base(tmp_path: Path, family: str) -> None:
    base = build_tiny(family, tmp_path / "base")
    model = load_model(base, CPU, torch.float32)
    (tmp_path / "out").mkdir()
    save_model(model, base, tmp_path / "out", "bf16", shard_bytes=100_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert set(stored_tensors(model)) == set(load_file(base / "model.safetensors"))
    again = load_model(tmp_path / "out", CPU, torch.float32)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name].bfloat16().float())


def test_numbers_too_large_for_the_type_are_not_written(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model, CPU, torch.float32)
    model.get_input_embeddings().weight.data[0, 0] = 1e6
    with pytest.raises(CoreError, match="too large"):
        save_model(model, tiny_model, tmp_path, "fp16")


def test_sixteen_bit_weights_are_not_trained(tiny_model: Path) -> None:
    from core.lora.full import Full

    model = load_model(tiny_model, CPU, torch.bfloat16)
    with pytest.raises(AdapterError, match="fp32"):
        Full(FullConfig()).install(model, Material([], 0))
