"""Query, key and value alone in fused projections: against attention's own view of them, separate layers, and peft."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_models import build_tiny
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    MistralConfig,
    MptConfig,
    PersimmonConfig,
    Phi3Config,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from core.adapter_shapes import adapter_shapes, trained_parameters
from core.config import DoraConfig, LoraConfig, RunConfig
from core.errors import AdapterError
from core.fused_parts import parts_advice, parts_problem
from core.lora.adapter_file import adapter_tensors, read_adapter, save_adapter
from core.lora.attach import load_adapter
from core.lora.fused_qkv import FusedQkvLayer, layout_of, parts_of
from core.lora.inject import inject, lora_layers, module_table, remove
from core.lora.start import start_from
from core.models.load import load_model
from core.start import settings_from
from core.start_problem import start_problem
from core.targets import select_targets

IDS = torch.arange(10, 34)[None]
_COMMON: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
_GPT: dict[str, Any] = {
    "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2,
    "bos_token_id": 0, "eos_token_id": 2}
CONFIGS = {
    "gpt2": GPT2Config(**_GPT),
    "gpt_bigcode, shared key": GPTBigCodeConfig(**_GPT, multi_query=True),
    "gpt_bigcode": GPTBigCodeConfig(**_GPT, multi_query=False),
    "phi3": Phi3Config(**_COMMON, intermediate_size=64, num_key_value_heads=2, sliding_window=None, pad_token_id=0),
    "gpt_neox": GPTNeoXConfig(**_COMMON, intermediate_size=64),
    "persimmon": PersimmonConfig(**_COMMON, intermediate_size=64),
    "bloom": BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
    "mpt": MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_seq_len=64, initializer_range=0.2),
    "falcon, shared key": FalconConfig(**_COMMON, multi_query=True, new_decoder_architecture=False),
    "falcon, alibi": FalconConfig(**_COMMON, multi_query=False, new_decoder_architecture=False, alibi=True),
    "falcon, groups": FalconConfig(**_COMMON, num_kv_heads=2, new_decoder_architecture=True),
}


def _model(config: Any) -> PreTrainedModel:
    logging.disable(logging.WARNING)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    logging.disable(logging.NOTSET)
    return model


def _trained(model: nn.Module, adapter: LoraConfig) -> dict[str, Any]:
    """Layers with a random B, as if they had been trained."""
    layers = inject(model, adapter, seed=0)
    generator = torch.Generator().manual_seed(1)
    for layer in layers.values():
        layer.lora_b.data.normal_(0, 0.3, generator=generator)
    return layers


def _fused_names(model: PreTrainedModel) -> list[str]:
    return [info.name for info in module_table(model) if info.qkv_rows is not None]


@pytest.mark.parametrize("name", CONFIGS)
def test_attention_sees_only_the_chosen_part_changed(name: str) -> None:
    model = _model(CONFIGS[name])
    fused = _fused_names(model)
    assert len(fused) == 2
    lowest = fused[0]

    def states() -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of the lowest layer as the attention keeps them, (heads, tokens, size), and the logits."""
        with torch.no_grad():
            output = model(IDS, use_cache=True)
        return output.past_key_values.layers[0].keys[0], output.past_key_values.layers[0].values[0], output.logits

    keys, values, logits = states()
    for part, moved in (("q", (False, False)), ("k", (True, False)), ("v", (False, True))):
        _trained(model, LoraConfig(rank=4, target_modules=(lowest,), fused_parts=(part,)))  # type: ignore[arg-type]
        new_keys, new_values, new_logits = states()
        for old, new, changed in ((keys, new_keys, moved[0]), (values, new_values, moved[1])):
            if changed:  # every head, every number of it
                assert (new - old).abs().amax(dim=1).min() > 0
            else:
                assert torch.equal(new, old)
        assert (new_logits - logits).abs().max() > 1e-3
        remove(model)
    assert torch.equal(states()[2], logits)


def test_equals_separate_layers() -> None:
    """Phi-3 is Mistral with joint projections: the same A and B on Mistral's own q, k and v give the same logits."""
    fused = _model(CONFIGS["phi3"])
    separate = _model(MistralConfig(**_COMMON, intermediate_size=64, num_key_value_heads=2, sliding_window=None,
                                    tie_word_embeddings=False, rms_norm_eps=fused.config.rms_norm_eps))
    state = dict(fused.state_dict())
    for number in range(2):
        layer = f"model.layers.{number}"
        qkv, gate_up = state.pop(f"{layer}.self_attn.qkv_proj.weight"), state.pop(f"{layer}.mlp.gate_up_proj.weight")
        for part, rows in zip("qkv", qkv.split([32, 16, 16]), strict=True):
            state[f"{layer}.self_attn.{part}_proj.weight"] = rows
        state[f"{layer}.mlp.gate_proj.weight"], state[f"{layer}.mlp.up_proj.weight"] = gate_up.chunk(2)
    separate.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(fused(IDS).logits, separate(IDS).logits)
    adapter = LoraConfig(rank=4, alpha=6.0, target_modules=("qkv_proj",), fused_parts=("q", "v"))
    ours = _trained(fused, adapter)
    theirs = _trained(separate, LoraConfig(rank=4, alpha=6.0, target_modules=("q_proj", "v_proj")))
    for name, layer in ours.items():
        place = name.removesuffix("qkv_proj")
        blocks = zip("qv", layer.lora_a.data.split(4), layer.lora_b.data.split([32, 16]), strict=True)
        for part, rows_a, rows_b in blocks:
            theirs[f"{place}{part}_proj"].lora_a.data.copy_(rows_a)
            theirs[f"{place}{part}_proj"].lora_b.data.copy_(rows_b)
    losses = []
    for model in (fused.double(), separate.double()):
        logits = model(IDS).logits
        losses.append(logits)
        logits.square().mean().backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-12)
    for name, layer in ours.items():
        place = name.removesuffix("qkv_proj")
        for side in ("lora_a", "lora_b"):
            expected = torch.cat([getattr(theirs[f"{place}{part}_proj"], side).grad for part in "qv"])
            torch.testing.assert_close(getattr(layer, side).grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_neox"])
@pytest.mark.parametrize(("parts", "options"), [
    (("q", "v"), {}), (("k",), {"rslora": True}), (("q", "k"), {"rank_pattern": {r"(layers|h)\.1\..*": 3}}),
], ids=["qv", "k rslora", "qk pattern"])
def test_peft_reads_ours_as_plain_lora(family: str, parts: Any, options: dict[str, Any], tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    model = load_model(base, torch.device("cpu"), torch.float32)
    adapter = LoraConfig(rank=4, alpha=6.0, fused_parts=parts, **options)
    layers = _trained(model, adapter)
    assert sum(isinstance(layer, FusedQkvLayer) for layer in layers.values()) == 2
    save_adapter(tmp_path / "adapter", model, adapter, str(base))
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    again = load_model(base, torch.device("cpu"), torch.float32)
    load_adapter(tmp_path / "adapter", again)
    with torch.no_grad():
        logits = model(IDS).logits
        torch.testing.assert_close(logits, reference(IDS).logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(logits, again(IDS).logits, rtol=0, atol=1e-5)
        merged = reference.merge_and_unload().state_dict()
    for name, layer in layers.items():  # and merged
        delta = layer.delta() if family != "gpt2" else layer.delta().T
        torch.testing.assert_close(layer.weight + delta, merged[f"{name}.weight"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_neox"])
def test_the_estimate_counts_what_is_trained_and_written(family: str, tmp_path: Path) -> None:
    model = load_model(build_tiny(family, tmp_path / "base"), torch.device("cpu"), torch.float32)
    adapter = LoraConfig(rank=4, fused_parts=("q", "v"))
    targets = select_targets(module_table(model), adapter)
    layers = inject(model, adapter, seed=0)
    assert trained_parameters(targets, adapter) == sum(
        layer.lora_a.numel() + layer.lora_b.numel() for layer in layers.values())
    assert adapter_shapes(targets, adapter) == {
        name: tuple(tensor.shape) for name, tensor in adapter_tensors(model).items()}


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ten_steps_leave_the_other_parts_alone(dropout: float, dtype: torch.dtype) -> None:
    model = _model(CONFIGS["gpt_neox"]).to(dtype)
    layers = inject(model, LoraConfig(rank=2, dropout=dropout, target_modules=("query_key_value",),
                                      fused_parts=("v",)), seed=0)
    parameters = [parameter for layer in layers.values() for parameter in (layer.lora_a, layer.lora_b)]
    for layer in layers.values():
        layer.training = True
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    for layer in layers.values():
        moved = layer.delta().reshape(4, 3, 8, 32).abs().amax(dim=(0, 2, 3))  # heads, parts, size, in
        assert (moved > 0).tolist() == [False, False, True]


def test_the_parts_of_a_file_are_told_by_its_zeros() -> None:
    model = _model(CONFIGS["gpt_neox"])
    layout = layout_of(model.config, "query_key_value", 96)
    assert layout is not None
    for parts in (("q",), ("k",), ("q", "v"), ("k", "v")):
        layer = FusedQkvLayer(copy.deepcopy(model.gpt_neox.layers[0].attention.query_key_value), 2, 4.0,
                              layout=layout, parts=parts)
        assert parts_of(layer.left(), layout) is None  # zeros tell nothing
        nn.init.normal_(layer.lora_b)
        assert parts_of(layer.left(), layout) == parts
        again = FusedQkvLayer(layer.base, 2, 4.0, layout=layout, parts=parts)
        again.take(layer.lora_a, layer.left().detach())
        assert torch.equal(again.delta(), layer.delta())
    assert parts_of(torch.randn(96, 4), layout) is None


def test_what_can_not_be_done_is_said() -> None:
    table = module_table(_model(CONFIGS["phi3"]))
    few = LoraConfig(fused_parts=("q", "v"))
    for adapter, words in ((DoraConfig(fused_parts=("q",)), "DoRA"),
                           (LoraConfig(fused_parts=("q",), init="pissa"), "pissa")):
        problem = parts_problem(select_targets(table, adapter), adapter)
        assert problem is not None
        assert words in problem[1]
        with pytest.raises(AdapterError, match=words):
            inject(_model(CONFIGS["phi3"]), adapter, seed=0)
    with pytest.raises(AdapterError, match=r"Rank 20 is above the size of .*qkv_proj"):  # a key is 16 wide
        inject(_model(CONFIGS["phi3"]), LoraConfig(rank=20, target_modules=("qkv_proj",), fused_parts=("k",)), seed=0)
    unknown = [info.__class__(**{**info.__dict__, "qkv_rows": None}) for info in table]
    problem = parts_problem(select_targets(unknown, few), few)
    assert problem is not None
    assert "order" in problem[1]
    assert parts_problem(select_targets(table, few), few) is None
    assert parts_advice(select_targets(table, few), few) is None
    advice = parts_advice([info for info in table if info.kind == "o_proj"], few)
    assert advice is not None
    assert "no effect" in advice[1]
    both = LoraConfig(target_modules="q-v")
    advice = parts_advice(select_targets(table, both), both)
    assert advice is not None
    assert "key is adapted as well" in advice[1]


def test_all_three_parts_are_a_plain_lora(tmp_path: Path) -> None:
    base = build_tiny("gpt2", tmp_path / "base")
    model = load_model(base, torch.device("cpu"), torch.float32)
    adapter = LoraConfig(rank=4)
    inject(model, adapter, seed=0)
    assert not any(isinstance(layer, FusedQkvLayer) for layer in lora_layers(model).values())
    save_adapter(tmp_path / "adapter", model, adapter, str(base))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["rank_pattern"] == {}
    assert read_adapter(tmp_path / "adapter").pairs["transformer.h.0.attn.c_attn"].lora_a.shape == (4, 64)


def test_training_goes_on_with_the_same_parts(tmp_path: Path) -> None:
    base = build_tiny("gpt_neox", tmp_path / "base")
    model = load_model(base, torch.device("cpu"), torch.float32)
    adapter = LoraConfig(rank=4, alpha=6.0, rslora=True, fused_parts=("q", "v"))
    layers = _trained(model, adapter)
    save_adapter(tmp_path / "adapter", model, adapter, str(base))
    file = read_adapter(tmp_path / "adapter")
    settings = settings_from(file.config, list(file.pairs), file.origin)
    again = LoraConfig(**settings, start_from=str(tmp_path / "adapter"))
    assert (again.rank, again.alpha, again.fused_parts, again.rank_pattern, again.alpha_pattern) == (
        4, 6.0, ("q", "v"), {}, {})
    fresh = load_model(base, torch.device("cpu"), torch.float32)
    inject(fresh, again, seed=3)
    start_from(fresh, RunConfig(adapter=again), "")
    for name, layer in lora_layers(fresh).items():
        assert torch.equal(layer.lora_a, layers[name].lora_a)
        assert torch.equal(layer.lora_b, layers[name].lora_b)
    other = again.model_copy(update={"fused_parts": ("k", "v")})
    problem = start_problem(RunConfig(adapter=other))
    assert problem is not None
    assert problem[:1] == ("adapter.fused_parts",)
    plain = tmp_path / "plain"  # as another program would leave it, without a note of the parts
    save_adapter(plain, model, adapter, str(base))
    (plain / "workbench.json").unlink()
    rest = LoraConfig(rank=4, alpha=6.0, rslora=True, fused_parts=("k", "v"), start_from=str(plain))
    wrong = load_model(base, torch.device("cpu"), torch.float32)
    inject(wrong, rest, seed=3)
    with pytest.raises(AdapterError, match="other parts"):
        start_from(wrong, RunConfig(adapter=rest), "")
