"""New tokens: taught to the tokenizer, their rows alone trained, saved, chatted with, merged; and read by peft."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.config import DataConfig, LoraConfig, ModelConfig, RunConfig, TrainingConfig
from core.control import Control
from core.errors import AdapterError
from core.estimate import estimate
from core.events import Result
from core.export.export import export
from core.jobs import Export, Generate, Resume, Train
from core.lora.adaptation import Adaptation
from core.lora.adapter_file import read_adapter
from core.lora.attach import load_adapter
from core.lora.beside import add_tokens
from core.lora.inject import adapter_disabled, remove
from core.lora.method import Material
from core.models.inspect import read_card
from core.models.load import load_model, load_tokenizer
from core.run_problems import problems
from core.runs.folder import RunFolder
from core.training.generate import generate
from core.training.loop import resume, train

TOKENS = ("<order>", "</order>")
FIELDS: dict[str, Any] = {"rank": 4, "alpha": 8.0, "target_modules": ("q_proj",), "new_tokens": TOKENS}


def _config(base: Path, folder: Path, **adapter: Any) -> RunConfig:
    rows = [{"messages": [{"role": "user", "content": f"I would like {n} pizzas."},
                          {"role": "assistant", "content": f"<order>{n}</order>"}]} for n in range(12)]
    data = folder / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    return RunConfig(model=ModelConfig(path=str(base)), data=DataConfig(train=(str(data),)),
                     adapter=LoraConfig(**{**FIELDS, **adapter}),
                     training=TrainingConfig(max_steps=4, batch_size=4, learning_rate=1e-2, checkpoint_every=2,
                                             device="cpu", dtype="fp32"))


@pytest.mark.parametrize("family", ["llama", pytest.param("qwen3", marks=pytest.mark.full)])  # tied, untied
def test_from_training_to_chat_and_merge(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base = build_tiny(family, tmp_path / "base")
    config = _config(base, tmp_path)
    card = read_card(base)
    assert not problems(config, card)
    run = RunFolder(tmp_path / "run")
    assert isinstance(list(train(Train(config, run.path), Control()))[-1], Result)
    shutil.copytree(run.path, tmp_path / "again")  # the same run, cut off after its first half
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-000004")
    shutil.rmtree(tmp_path / "again" / "adapter")
    lines = (run.path / "events.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "again" / "events.jsonl").write_text("".join(line for line in lines if '"Finished"' not in line))
    list(resume(Resume(tmp_path / "again"), Control()))
    found, again = read_adapter(run.adapter), read_adapter(tmp_path / "again" / "adapter")
    assert all(torch.equal(tensor, again.contents.beside()[name]) for name, tensor in found.contents.beside().items())
    assert set(found.contents.rows) == ({"model.embed_tokens"} if family == "llama" else
                                        {"model.embed_tokens", "lm_head"})
    expected = estimate(config, card)
    tensors = [*(tensor for pair in found.pairs.values() for tensor in pair.tensors()),
               *found.contents.beside().values()]
    assert expected.trainable_parameters == sum(tensor.numel() for tensor in tensors)
    assert expected.adapter_bytes == (run.adapter / "adapter_model.safetensors").stat().st_size

    tokenizer = load_tokenizer(run.adapter)
    ids = torch.tensor([tokenizer.encode("like <order>2</order> please", add_special_tokens=False)])
    assert int(ids.max()) == card.vocabulary + 1
    model = load_model(base, torch.device("cpu"), torch.float32)
    short = ids.clamp_max(card.vocabulary - 1)
    with torch.no_grad():
        before = model(short).logits
        load_adapter(run.adapter, model)
        logits = model(ids).logits
        assert logits.shape[-1] == card.vocabulary + 2
        reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        reference.resize_token_embeddings(card.vocabulary + 2, mean_resizing=False)
        reference = PeftModel.from_pretrained(reference, run.adapter).eval()
        torch.testing.assert_close(logits, reference(ids).logits, rtol=0, atol=1e-5)

        job = Generate(str(base), run.adapter, {"base": (("user", "Hello"),), "tuned": (("user", "<order> please"),)},
                       max_new_tokens=4, device="cpu")
        assert isinstance(list(generate(job, Control()))[-1], Result)

        for dtype in ("fp32", "bf16"):
            values = list(export(Export(run.path, "merged", tmp_path / dtype, dtype=dtype), Control()))[-1]
            assert isinstance(values, Result) and values.values["passed"], values
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16", dtype=torch.float32)
        assert merged.config.vocab_size == card.vocabulary + 2
        assert merged.config.tie_word_embeddings == (family == "llama")
        assert torch.equal(merged(ids).logits.argmax(-1), logits.argmax(-1))
        assert AutoTokenizer.from_pretrained(tmp_path / "bf16").encode("<order>") == [card.vocabulary]

        with adapter_disabled(model):
            assert torch.equal(model(short).logits, before)
        remove(model)
        assert torch.equal(model(short).logits, before)


def test_resized_files_of_peft_are_read(tmp_path: Path) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    for family in ("llama", "qwen3"):
        base = build_tiny(family, tmp_path / family)
        reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        reference.resize_token_embeddings(387)
        for number, fields in enumerate(({"trainable_token_indices": [384, 385, 386]},
                                         {"modules_to_save": ["embed_tokens", "lm_head"]})):
            model = get_peft_model(reference, PeftConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM",
                                                         init_lora_weights=False, **fields)).eval()
            out = tmp_path / f"{family}-{number}"
            model.save_pretrained(out)
            ours = load_model(base, torch.device("cpu"), torch.float32)
            load_adapter(out, ours)
            ids = torch.tensor([[20, 386, 30, 384]])
            with torch.no_grad():
                torch.testing.assert_close(ours(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
            reference = model.unload()


def test_a_token_that_is_there_is_trained_from_its_own_row(tiny_model: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, tmp_path, new_tokens=("<|im_end|>", "<order>"))
    config = config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": 1e-12})})
    assert isinstance(list(train(Train(config, tmp_path / "run"), Control()))[-1], Result)
    rows = read_adapter(tmp_path / "run" / "adapter").contents.rows["model.embed_tokens"]
    vocabulary = load_tokenizer(tiny_model).get_vocab()
    weight = load_model(tiny_model, torch.device("cpu"), torch.float32).get_input_embeddings().weight
    assert rows.indices == (vocabulary["<|im_end|>"], len(vocabulary))
    torch.testing.assert_close(rows.values[0], weight[rows.indices[0]].detach(), rtol=0, atol=1e-9)
    assert len(load_tokenizer(tmp_path / "run" / "adapter")) == len(vocabulary) + 1


def test_a_token_above_the_rows_of_the_model_is_new_to_it(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_tokens(["[PAD]"])  # the tokenizer's maker did, and left the model as it was
    model = load_model(tiny_model, torch.device("cpu"), torch.float32)
    config = RunConfig(adapter=LoraConfig(**{**FIELDS, "new_tokens": ("[PAD]",)}))
    assert not add_tokens(tokenizer, ("[PAD]",))
    Adaptation(config).install(model, Material([], 0, tokenizer))
    weight = load_model(tiny_model, torch.device("cpu"), torch.float32).get_input_embeddings().weight
    with torch.no_grad():
        row = model.get_input_embeddings()(torch.tensor([len(weight)]))
        pieces = tokenizer.encode("PAD", add_special_tokens=False)
        torch.testing.assert_close(row[0], weight[pieces].mean(dim=0), rtol=0, atol=1e-6)


def test_tokens_that_can_not_be_added_are_refused(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    with pytest.raises(AdapterError, match="empty"):
        add_tokens(tokenizer, (" ",))
    card = read_card(tiny_model)
    config = RunConfig(model=ModelConfig(path=str(tiny_model)), adapter=LoraConfig(**FIELDS))
    for changes, field in (
            ({"modules_to_save": ("lm_head",)}, None), ({"target_modules": ("embed_tokens",)}, "adapter.new_tokens"),
            ({"target_modules": ("q_proj", "lm_head")}, "adapter.new_tokens"),  # tied, so without rows of its own
            ({"new_tokens": ("<a>", "<a>")}, "adapter.new_tokens")):
        changed = config.model_copy(update={"adapter": LoraConfig(**{**FIELDS, **changes})})
        fields = [problem.field for problem in problems(changed, card) if problem.field.startswith("adapter.")]
        assert fields == ([field] if field else [])
