"""A trained prefix: as PEFT has it, seen by every row, and taken off without a trace."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, build_tiny, some_quick
from transformers import AutoModelForCausalLM, FalconConfig, MambaConfig, MixtralConfig, OPTConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from core.config import PrefixConfig
from core.control import Control
from core.data.batching import pack, pad
from core.data.template import EncodedRow
from core.errors import AdapterError
from core.lora.adapter_file import read_adapter
from core.lora.attach import load_adapter
from core.lora.inject import adapter_disabled, module_table, remove
from core.lora.method import Material
from core.lora.prefix import Prefix, prefix_length, prefix_of
from core.models.load import load_model
from core.training.batch_generate import answer_batch
from core.training.computing_path import choose_path
from core.training.decode import Answer, Sampling
from core.training.loss import chunked_loss, direct_loss
from core.training.segments import segmented_attention

IDS = torch.arange(20, 110)[None]
CPU = torch.device("cpu")


def _rows(lengths: tuple[int, ...] = (50,)) -> list[EncodedRow]:
    random = np.random.default_rng(0)
    return [EncodedRow(index, random.integers(5, 380, size=length).astype(np.int32),
                       np.arange(length) >= length // 2, False, length) for index, length in enumerate(lengths)]


def _prefixed(base: Path, **options: object):
    model = load_model(base, CPU, torch.float32)
    model.requires_grad_(False)
    method = Prefix(PrefixConfig.model_validate(options), alone=True)
    method.install(model, Material(_rows(), 0))
    return model, method


def _saved(base: Path, folder: Path, **options: object):
    model, method = _prefixed(base, **options)
    folder.mkdir()
    method.write(folder, model, torch.float32, str(base), {})
    return model, method


def _peft(base: Path, folder: Path):
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder).eval()


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_peft_reads_ours_and_we_read_it_again(family: str, tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    # once within, once longer than the sliding window of the tiny Gemmas; once through the network
    for number, options in enumerate(({"length": 5}, {"length": 70}, {"length": 5, "projection": True})):
        folder = tmp_path / str(number)
        model, _ = _saved(base, folder, **options)
        again = load_model(base, CPU, torch.float32)
        load_adapter(folder, again)
        with torch.no_grad():
            ours = model(IDS).logits
            torch.testing.assert_close(ours, _peft(base, folder)(IDS).logits, rtol=0, atol=1e-5)
            torch.testing.assert_close(ours, again(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", some_quick(FAMILIES))
@pytest.mark.parametrize("projection", [False, True])
def test_ours_reads_peft(family: str, projection: bool, tmp_path: Path) -> None:
    from peft import PrefixTuningConfig, get_peft_model

    base = build_tiny(family, tmp_path / "base")
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6, prefix_projection=projection)
    torch.manual_seed(0)
    reference = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).eval()
    reference.save_pretrained(tmp_path / "adapter")
    model = load_model(base, CPU, torch.float32)
    load_adapter(tmp_path / "adapter", model)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_gradients_and_ten_steps_are_those_of_peft(family: str, tmp_path: Path) -> None:
    from peft import PrefixTuningConfig, get_peft_model

    base = build_tiny(family, tmp_path / "base")
    model, _ = _prefixed(base, length=5)
    mine = prefix_of(model)
    assert mine is not None
    reference = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
                               PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    theirs = reference.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        theirs.copy_(mine.embedding)
    trained = [parameter for parameter in reference.parameters() if parameter.requires_grad]
    assert [parameter is theirs for parameter in trained] == [True]
    ours, others = torch.optim.AdamW([mine.embedding], lr=1e-2), torch.optim.AdamW([theirs], lr=1e-2)
    for step in range(10):
        for net, optimizer in ((model, ours), (reference, others)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(IDS).logits[0, :-1], IDS[0, 1:]).backward()
        if step == 0:
            assert float((mine.embedding.grad - theirs.grad).norm() / theirs.grad.norm()) < 1e-6
        ours.step()
        others.step()
    torch.testing.assert_close(mine.embedding, theirs, rtol=0, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not mine.embedding)


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_packed_and_padded_rows_each_see_the_prefix(family: str, tmp_path: Path) -> None:
    model, _ = _prefixed(build_tiny(family, tmp_path / "base"), length=9)
    prefix = prefix_of(model)
    assert prefix is not None
    rows = _rows((12, 90, 33, 7))  # one of them longer than the sliding window of the tiny Gemmas

    def measured(loss, batches):
        prefix.embedding.grad = None
        total = sum(loss(model, batch) for batch in batches)
        total.backward()
        return total.detach(), prefix.embedding.grad

    expected, gradient = measured(direct_loss, [pad([row])[0] for row in rows])
    with segmented_attention(model):
        packed, packed_gradient = measured(chunked_loss, pack(rows))
    padded, padded_gradient = measured(chunked_loss, pad(rows))
    for value, slope in ((packed, packed_gradient), (padded, padded_gradient)):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(slope, gradient, rtol=1e-4, atol=1e-4)
    assert choose_path(model, rows, "auto", CPU)[2:] == (True, "", True)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_answers_token_by_token_and_many_at_once_are_those_of_whole_rows(family: str, tmp_path: Path) -> None:
    model, _ = _prefixed(build_tiny(family, tmp_path / "base"), length=9)
    prompts = [list(range(20, 29)), list(range(40, 71)), list(range(90, 149))]
    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        with torch.no_grad():
            for _ in range(12):
                tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        expected.append(tokens[len(prompt):])
    together = dict(answer_batch(model, prompts, frozenset(), 12, Control()))
    for number, prompt in enumerate(prompts):
        answer = Answer(model, prompt, Sampling(), frozenset(), 12)
        while not answer.ended:
            answer.step(Control())
        assert answer.tokens == expected[number] == together[number]


def test_it_begins_with_what_the_model_makes_of_the_first_tokens(tiny_model: Path) -> None:
    model, _ = _prefixed(tiny_model, length=10)
    first = torch.from_numpy(_rows()[0].input_ids[:10].astype(np.int64))[None]
    with torch.no_grad():
        after_prefix = model(IDS).logits
        with adapter_disabled(model):
            whole = model(torch.cat([first, IDS], dim=1)).logits[:, 10:]
    torch.testing.assert_close(after_prefix, whole, rtol=0, atol=1e-4)


def test_it_can_be_switched_off_and_taken_off(tiny_model: Path) -> None:
    model = load_model(tiny_model, CPU, torch.float32)
    expected, table, names = model(IDS).logits, module_table(model), [name for name, _ in model.named_parameters()]
    Prefix(PrefixConfig(length=4)).install(model, Material(_rows(), 0))
    assert module_table(model) == table
    assert prefix_length(model) == 4
    with adapter_disabled(model):
        assert torch.equal(model(IDS).logits, expected)
        assert prefix_length(model) == 0
    assert not torch.equal(model(IDS).logits, expected)
    remove(model)
    assert torch.equal(model(IDS).logits, expected)
    assert [name for name, _ in model.named_parameters()] == names


def test_the_same_seed_draws_the_same_network(tiny_model: Path) -> None:
    values = [prefix_of(_prefixed(tiny_model, projection=True)[0]).values() for _ in range(2)]
    assert torch.equal(*values)


def test_a_prefix_of_another_model_or_a_damaged_one_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    _saved(tiny_model, folder, length=4)
    other = load_model(build_tiny("gpt2", tmp_path / "gpt2"), CPU, torch.float32)
    with pytest.raises(AdapterError, match="does not fit this model: the prefix is for 3 layers of width 32"):
        load_adapter(folder, other)
    assert prefix_of(other) is None
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    values, words = load_file(weights), json.loads(config.read_text())
    for change, message in (({"prompt_embeddings": values["prompt_embeddings"][:3]}, "should be"),
                            ({"prompt_embeddings": values["prompt_embeddings"] * torch.nan}, "not finite"),
                            ({"other": values["prompt_embeddings"]}, "prompt_embeddings alone")):
        save_file({name: tensor.contiguous() for name, tensor in change.items()}, weights)
        with pytest.raises(AdapterError, match=message):
            read_adapter(folder)
    save_file(values, weights)
    for name, value in (("num_layers", None), ("token_dim", 33), ("num_transformer_submodules", 2)):
        config.write_text(json.dumps(words | {name: value}))
        with pytest.raises(AdapterError):
            read_adapter(folder)


@pytest.mark.parametrize("config", [
    OPTConfig(vocab_size=99, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
              word_embed_proj_dim=32, max_position_embeddings=128),
    FalconConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),  # one key head
    MixtralConfig(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, num_local_experts=4),
], ids=["opt", "falcon", "mixtral"])
def test_other_families_see_it_too(config: object) -> None:
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    rows = [EncodedRow(0, np.arange(5, 60, dtype=np.int32), np.arange(55) > 3, False, 55)]
    Prefix(PrefixConfig(length=5)).install(model, Material(rows, 0))
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        after_prefix = model(ids).logits
        with adapter_disabled(model):
            whole = model(torch.cat([torch.arange(5, 10)[None], ids], dim=1)).logits[:, 5:]
    torch.testing.assert_close(after_prefix, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [
    MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2),
    FalconConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2,
                 new_decoder_architecture=True),  # keeps its keys once for every query head
], ids=["mamba", "new falcon"])
def test_a_model_that_can_not_take_one_says_so(config: object) -> None:
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    rows = [EncodedRow(0, np.arange(5, 60, dtype=np.int32), np.arange(55) > 3, False, 55)]
    with pytest.raises(AdapterError, match="can not take a prefix"):
        Prefix(PrefixConfig(length=5)).install(model, Material(rows, 0))
    assert prefix_of(model) is None
