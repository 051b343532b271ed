"""Several adapters on one base: weighted sums, switching, merging and taking back, refused adapters."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build_tiny
from transformers import PreTrainedModel

from core.config import DoraConfig, LoraConfig
from core.errors import AdapterError
from core.lora.adapter_file import read_adapter, save_adapter
from core.lora.adapter_set import AdapterSet
from core.lora.attach import load_adapter
from core.lora.dora import DoraLayer
from core.lora.inject import inject, lora_layers
from core.lora.layers import LoraLayer
from core.lora.mixed import MixedLayer
from core.models.load import load_model

IDS = torch.arange(3, 40)[None]


def load(base: Path) -> PreTrainedModel:
    return load_model(base, torch.device("cpu"), torch.float32)


def make_adapter(base: Path, folder: Path, seed: int, adapter: LoraConfig | DoraConfig) -> Path:
    model = load(base)
    inject(model, adapter, seed, DoraLayer if isinstance(adapter, DoraConfig) else LoraLayer)
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_b.data.normal_(0, 0.1, generator=generator)
        if isinstance(layer, DoraLayer):
            layer.magnitude.data.mul_(1.1)
    save_adapter(folder, model, adapter, str(base))
    return folder


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(request.param, tmp_path_factory.mktemp("set") / request.param)


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "a": make_adapter(base, root / "a", 1, LoraConfig(rank=4)),
        "b": make_adapter(base, root / "b", 2, LoraConfig(rank=3, alpha=5.0, target_modules="attention")),
        "dora": make_adapter(base, root / "dora", 3, DoraConfig(rank=4)),
    }


def changes(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """W' - W of every weight, by merging the adapter alone."""
    model = load(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapters = AdapterSet(model)
    adapters.load("x", folder)
    adapters.use({"x": 1.0})
    adapters.merge()
    merged = {name.replace(".base.", "."): tensor for name, tensor in model.state_dict().items()}
    return {name: tensor - before[name] for name, tensor in merged.items()}


def test_a_weighted_sum_is_that_of_the_weight_changes(base: Path, folders: dict[str, Path]) -> None:
    expected = load(base)
    weights = {"a": 0.7, "b": -0.4, "dora": 1.3}
    total = expected.state_dict()
    for name, weight in weights.items():
        for key, change in changes(base, folders[name]).items():
            total[key] = total[key] + weight * change
    expected.load_state_dict(total)
    model = load(base)
    adapters = AdapterSet(model)
    for name, folder in folders.items():
        adapters.load(name, folder)
    plain = logits(load(base))
    assert torch.equal(logits(model), plain)  # loaded, but nothing counts yet
    adapters.use(weights)
    assert torch.allclose(logits(model), logits(expected), atol=2e-4)
    with adapters.disabled():
        assert torch.equal(logits(model), plain)
    assert adapters.strengths == weights
    adapters.merge()
    assert torch.allclose(logits(model), logits(expected), atol=2e-4)


def test_switching_gives_exactly_the_single_adapter_and_is_quick(base: Path, folders: dict[str, Path]) -> None:
    model = load(base)
    adapters = AdapterSet(model)
    for name, folder in folders.items():
        adapters.load(name, folder)
    for name, folder in folders.items():
        alone = load(base)
        single = AdapterSet(alone)
        single.load(name, folder)
        single.use({name: 1.0})
        begin = time.perf_counter()
        adapters.use({name: 1.0})
        assert time.perf_counter() - begin < 0.05
        assert torch.equal(logits(model), logits(alone))
    adapters.drop("a")
    assert adapters.names == ["b", "dora"]
    adapters.close()
    assert not any(isinstance(module, MixedLayer | LoraLayer) for module in model.modules())
    assert torch.equal(logits(model), logits(load(base)))


def test_merging_and_taking_back_gives_the_same_tensors(base: Path, folders: dict[str, Path]) -> None:
    model = load(base)
    adapters = AdapterSet(model)
    adapters.load("a", folders["a"])
    adapters.load("dora", folders["dora"])
    before = {name: (tensor, tensor.clone()) for name, tensor in model.named_parameters()}
    adapters.use({"a": 0.37, "dora": 0.5})
    unmerged = logits(model)
    adapters.merge()
    assert adapters.merged
    assert torch.allclose(logits(model), unmerged, atol=2e-4)
    assert any(not torch.equal(tensor, before[name][1]) for name, tensor in model.named_parameters())
    adapters.unmerge()
    for name, tensor in model.named_parameters():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert torch.equal(logits(model), unmerged)


def test_a_merge_that_is_not_finite_changes_nothing(base: Path, folders: dict[str, Path]) -> None:
    model = load(base)
    adapters = AdapterSet(model)
    adapters.load("a", folders["a"])
    adapters.use({"a": 1e39})
    before = list(model.parameters())
    with pytest.raises(AdapterError, match="not finite"):
        adapters.merge()
    assert not adapters.merged
    assert all(now is then for now, then in zip(model.parameters(), before, strict=True))


def test_an_adapter_of_another_model_leaves_the_set_as_it_was(base: Path, folders: dict[str, Path],
                                                              tmp_path: Path) -> None:
    model = load(base)
    adapters = AdapterSet(model)
    adapters.load("a", folders["a"])
    adapters.use({"a": 1.0})
    before = logits(model)
    other = build_tiny("gpt_neox", tmp_path / "other")
    stranger = make_adapter(other, tmp_path / "stranger", 1, LoraConfig(rank=2))
    with pytest.raises(AdapterError, match=r"gpt_neox\.layers\.0"):
        adapters.load("stranger", stranger)
    assert adapters.names == ["a"]
    assert torch.equal(logits(model), before)


def make_rows(base: Path, folder: Path) -> Path:
    """An adapter with rows of a known and of a new token beside an update, as peft writes them."""
    make_adapter(base, folder, 4, LoraConfig(rank=2, target_modules=("q_proj",)))
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    bare = load(base).config
    rows = torch.randn(2, bare.hidden_size, generator=torch.Generator().manual_seed(0))
    names = ["model.embed_tokens"] if bare.tie_word_embeddings else ["model.embed_tokens", "lm_head"]
    save_file(load_file(path) | {f"base_model.model.{name}.token_adapter.trainable_tokens_delta": rows + number
                                 for number, name in enumerate(names)}, path)
    indices = {"trainable_token_indices": {name: [7, 384] for name in names}}
    config.write_text(json.dumps(json.loads(config.read_text()) | indices))
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # tied, untied
def test_rows_of_tokens_stand_before_another_adapter_of_the_same_layers(family: str, tmp_path: Path) -> None:
    base = build_tiny(family, tmp_path / "base")
    folders = {"rows": make_rows(base, tmp_path / "rows"), "ends": make_adapter(
        base, tmp_path / "ends", 5, LoraConfig(rank=2, target_modules=("embed_tokens", "lm_head")))}
    alone = load(base)
    load_adapter(folders["rows"], alone)
    model = load(base)
    adapters = AdapterSet(model)
    for name, folder in folders.items():
        adapters.load(name, folder)
    for strengths in ({"rows": 1.0}, {"rows": 1.0, "ends": 0.0}):
        adapters.use(strengths)
        assert torch.equal(logits(model), logits(alone))
    if family == "qwen3":
        alone = load(base)
        pairs = read_adapter(folders["ends"]).pairs
        alone.get_input_embeddings().weight.data += 0.5 * pairs["model.embed_tokens"].delta().T
        alone.get_output_embeddings().weight.data += 0.5 * pairs["lm_head"].delta()
        load_adapter(folders["rows"], alone)
        adapters.use({"ends": 0.5, "rows": 1.0})
        assert logits(model).shape[-1] == 385
        torch.testing.assert_close(logits(model), logits(alone), rtol=0, atol=1e-4)
    with adapters.disabled():
        assert torch.equal(logits(model), logits(load(base)))
    adapters.use({"ends": 1.0})
    assert logits(model).shape[-1] == 384
    adapters.close()
    assert torch.equal(logits(model), logits(load(base)))


@pytest.mark.starter
def test_switching_on_the_starter_model_takes_no_time(starter_model: Path, tmp_path: Path) -> None:
    model = load(starter_model)
    adapters = AdapterSet(model)
    for seed in (1, 2):
        adapters.load(str(seed), make_adapter(starter_model, tmp_path / str(seed), seed, LoraConfig(rank=8)))
    adapters.use({"1": 1.0})
    begin = time.perf_counter()
    adapters.use({"2": 1.0})
    seconds = time.perf_counter() - begin
    print(f"switch: {seconds * 1e6:.0f} microseconds")
    assert seconds < 0.05
