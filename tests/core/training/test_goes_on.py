"""Training goes on from an adapter of every method: inspected, its settings taken over, its numbers the start."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_tiny, some_quick
from transformers import AutoModelForCausalLM, PreTrainedModel

from core.config import RunConfig, parse_config
from core.control import Control
from core.events import AdapterInspected, CheckpointSaved, Evaluated, Note, Result, Warned
from core.export.inspect_adapter import inspect_adapter
from core.jobs import InspectAdapter, Train
from core.lora.adapter_file import AdapterFile, read_adapter
from core.lora.attach import load_adapter
from core.models.inspect import read_card
from core.models.load import load_model, load_tokenizer
from core.run_problems import problems
from core.start import going_on_from
from core.training.loop import train

TRAINING = {"max_steps": 8, "batch_size": 4, "warmup_steps": 0, "device": "cpu", "dtype": "fp32"}
STAND_STILL = {"learning_rate": 1e-12, "max_steps": 3}
KINDS: dict[str, dict[str, Any]] = {
    "biases": {"adapter": {"method": "lora", "rank": 4, "bias": "all"}},
    "head": {"adapter": {"method": "dora", "rank": 4, "modules_to_save": ["lm_head"]}},
    "tokens": {"adapter": {"method": "lora", "rank": 4, "target_modules": "q-v", "new_tokens": ["<a>", "<b>"]}},
    "embedding": {"adapter": {"method": "lora", "rank": 4, "target_modules": ["embed_tokens", "q_proj"]}},
    "adalora": {"adapter": {"method": "adalora", "rank": 2, "initial_rank": 4, "budget_every": 1, "bias": "lora_only"}},
    "prefix": {"adapter": {"method": "none"}, "prefix": {"length": 6}},
    "bottleneck": {"adapter": {"method": "none"}, "bottleneck": {"size": 8, "first_layer": 1}},
    "all": {"adapter": {"method": "lora", "rank": 4}, "prefix": {"length": 6}, "bottleneck": {"size": 8}},
}
QUICK = ("tokens", "adalora", "all")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"instruction": f"say {n}", "output": f"<a>it is {n}"}) for n in range(24)))
    return file


def _train(config: RunConfig, run: Path) -> list[Any]:
    events = list(train(Train(config, run), Control()))
    assert isinstance(events[-1], Result)
    return events


def _going_on(adapter: Path, base: Path, before: RunConfig, **training: Any) -> RunConfig:
    """As the window does: the adapter's own settings and base, the data and the rest of what was chosen before."""
    events = list(inspect_adapter(InspectAdapter(adapter, base=False), Control()))
    card = next(event.card for event in events if isinstance(event, AdapterInspected))
    assert not card.unlike
    values = before.model_dump(mode="json") | {"adapter": {"method": "lora"}, "prefix": None, "bottleneck": None}
    return going_on_from(parse_config(values | {"training": values["training"] | training}), card.settings, str(base))


def _tensors(file: AdapterFile) -> dict[str, torch.Tensor]:
    pairs = {f"{name}.delta": pair.delta() for name, pair in file.pairs.items()}
    lengths = {f"{name}.magnitude": pair.magnitude for name, pair in file.pairs.items() if pair.magnitude is not None}
    return pairs | lengths | file.contents.beside() | file.extras.tensors


@pytest.mark.parametrize("kind", some_quick(KINDS, QUICK))
def test_the_numbers_of_the_adapter_are_the_start(kind: str, rows: Path, tmp_path: Path) -> None:
    base = build_tiny("qwen2", tmp_path / "base")  # it has biases
    config = parse_config({"model": {"path": str(base)}, "data": {"train": [str(rows)], "validation_fraction": 0.2},
                           "training": {**TRAINING, "learning_rate": 3e-2}, **KINDS[kind]})
    first = _train(config, tmp_path / "first")
    config = _going_on(tmp_path / "first", base, config, **STAND_STILL)
    assert not problems(config, read_card(base))
    second = _train(config, tmp_path / "second")
    assert any("goes on from the adapter" in event.message for event in second if isinstance(event, Note))
    # what the first run ended with is what the second begins with, by its own measure
    saved = next(event.step for event in reversed(first) if isinstance(event, CheckpointSaved))
    ended = next(event.loss for event in first if isinstance(event, Evaluated) and event.step == saved)
    begun = next(event.loss for event in second if isinstance(event, Evaluated))
    kept = [event for event in first if isinstance(event, Evaluated) and event.best]
    assert begun == pytest.approx(kept[-1].loss if kept else ended, abs=1e-5)
    before, after = _tensors(read_adapter(tmp_path / "first" / "adapter")), \
        _tensors(read_adapter(tmp_path / "second" / "adapter"))
    assert before.keys() == after.keys()
    if kind != "adalora":  # which chooses its ranks anew
        for name, tensor in before.items():
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6, msg=name)


def _peft_adalora(model: PreTrainedModel) -> Any:
    from peft import AdaLoraConfig, get_peft_model

    return get_peft_model(model, AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=4, target_r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"],
        total_step=100, tinit=10, tfinal=30, init_lora_weights=False))


def _peft_prefix(model: PreTrainedModel) -> Any:
    from peft import PrefixTuningConfig, get_peft_model

    return get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))


def _peft_lora(**fields: Any) -> Callable[[PreTrainedModel], Any]:
    def make(model: PreTrainedModel) -> Any:
        from peft import LoraConfig, get_peft_model

        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False,
                                                 **{"target_modules": ["q_proj"], **fields}))
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return tuned
    make.__name__ = " ".join(fields)
    return make


@pytest.mark.parametrize(("family", "make"), [
    ("qwen2", _peft_adalora), pytest.param("qwen2", _peft_prefix, marks=pytest.mark.full),
    pytest.param("qwen2", _peft_lora(bias="lora_only", modules_to_save=["lm_head"]), marks=pytest.mark.full),
    pytest.param("llama", _peft_lora(bias="all"), marks=pytest.mark.full),  # it has none
    ("llama", _peft_lora(modules_to_save=["norm"])),  # which means every norm there
    # tied in the base, apart in the adapter
    pytest.param("llama", _peft_lora(target_modules=["embed_tokens", "lm_head"]), marks=pytest.mark.full),
    ("llama", _peft_lora(trainable_token_indices={"embed_tokens": [380, 381]})),
    ("llama", _peft_lora(trainable_token_indices=[380, 381])),
], ids=["adalora", "prefix", "biases", "no biases", "norms", "both ends", "tokens", "tokens by a list"])
def test_one_of_peft_s_is_the_start(family: str, make: Any, rows: Path, tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    tuned = make(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)).eval()
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        wanted = tuned(input_ids=ids).logits
    tuned.save_pretrained(tmp_path / "theirs", save_embedding_layers="token" in make.__name__)
    load_tokenizer(base).save_pretrained(tmp_path / "theirs")
    config = parse_config({"data": {"train": [str(rows)], "validation_fraction": 0.0}, "training": TRAINING})
    # the schedule leaves AdaLoRA all its ranks: nothing is pruned in steps in which nothing is learned
    config = _going_on(tmp_path / "theirs", base, config, **STAND_STILL)
    if make is _peft_adalora:
        assert config.adapter.first_rank == 4  # type: ignore[union-attr]
        config = config.model_copy(update={"adapter": config.adapter.model_copy(update={"rank": 4})})
    _train(config, tmp_path / "run")
    model = load_model(base, torch.device("cpu"), torch.float32)
    load_adapter(tmp_path / "run" / "adapter", model)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, rtol=0, atol=1e-5)


def _unlike(adapter: Path, base: Path) -> str:
    events = list(inspect_adapter(InspectAdapter(adapter, str(base)), Control()))
    card = next(event.card for event in events if isinstance(event, AdapterInspected))
    assert bool(card.settings) != bool(card.unlike)
    return card.unlike


@pytest.mark.parametrize(("family", "grown", "fields", "words"), [
    ("llama", 2, {"modules_to_save": ["embed_tokens", "lm_head"]}, "vocabulary was made larger"),
    ("qwen3", 0, {"trainable_token_indices": {"embed_tokens": [380]}}, "in model.embed_tokens alone"),
    ("llama", 0, {"target_modules": ["q_proj", "lm_head"], "trainable_token_indices": {"embed_tokens": [3]}},
     "single rows of it as well"),
    ("llama", 0, {"trainable_token_indices": {"embed_tokens": [3]}}, "which tokens these are")])
def test_what_can_not_go_on_is_told_when_it_is_looked_at(family: str, grown: int, fields: dict[str, Any], words: str,
                                                         tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if grown:
        model.resize_token_embeddings(model.config.vocab_size + grown, mean_resizing=False)
    _peft_lora(**fields)(model).save_pretrained(tmp_path / "theirs")
    load_tokenizer(base).save_pretrained(tmp_path / "theirs")
    if "which" in words:
        (tmp_path / "theirs" / "tokenizer.json").unlink()
    assert words in _unlike(tmp_path / "theirs", base)


def test_a_start_that_stays_the_best_is_told(rows: Path, tmp_path: Path) -> None:
    base = build_tiny("llama", tmp_path / "base")
    config = parse_config({"model": {"path": str(base)}, "data": {"train": [str(rows)], "validation_fraction": 0.2},
                           "training": {**TRAINING, "learning_rate": 1e-2}, "adapter": {"rank": 4}})
    _train(config, tmp_path / "first")
    worse = _going_on(tmp_path / "first", base, config, learning_rate=1.0, max_steps=2)
    told = [event.message for event in _train(worse, tmp_path / "worse") if isinstance(event, Warned)]
    assert any("started from has a lower validation loss" in message for message in told)
    better = _going_on(tmp_path / "first", base, config, learning_rate=1e-3, max_steps=8)
    told = [event.message for event in _train(better, tmp_path / "better") if isinstance(event, Warned)]
    assert not any("started from" in message for message in told)
