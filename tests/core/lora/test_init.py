"""The starts of A and B: nothing changes at first, peft trains alike, files are plain LoRA on the untouched base."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import build_tiny, some_quick

sys.path.insert(0, str(Path(__file__).resolve().parent))

from oracle import IDS, TARGETS, USUAL_TARGETS, adam, make_pair, read_by_peft, train_both

from core.adapter_shapes import adapter_shapes, file_bytes, trained_parameters
from core.config import DoraConfig, LoraConfig, RunConfig
from core.data.template import EncodedRow
from core.lora.adaptation import Adaptation
from core.lora.adapter_file import WEIGHTS_NAME, read_adapter, save_adapter
from core.lora.attach import load_adapter
from core.lora.eva import RunningSvd
from core.lora.inject import adapter_disabled, lora_layers, module_table
from core.lora.layers import LoraLayer
from core.lora.method import Material
from core.lora.svd import leading_svd
from core.method_problems import method_problems
from core.models.inspect import read_card
from core.models.load import load_model
from core.targets import select_targets

INITS = ("kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")
    return lambda family: root / family if (root / family).exists() else build_tiny(family, root / family)


def rows(count: int = 40) -> list[EncodedRow]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for number in range(count):
        ids = torch.randint(3, 380, (30,), generator=generator, dtype=torch.int32).numpy()
        found.append(EncodedRow(number, ids, torch.arange(30).ge(6).numpy(), False, 30))
    return found


def installed(base: Path, adapter: LoraConfig | DoraConfig, material: Material):
    model = load_model(base, CPU, torch.float32)
    adaptation = Adaptation(RunConfig(adapter=adapter))
    adaptation.install(model, material)
    return model, adaptation


@pytest.mark.parametrize("kind", [LoraConfig, DoraConfig])
@pytest.mark.parametrize("family", some_quick(["llama", "gpt2"], ["gpt2"]))
@pytest.mark.parametrize("init", INITS)
def test_at_the_start_the_model_is_its_base(init: str, family: str, kind: type[LoraConfig | DoraConfig],
                                            bases: Callable[[str], Path]) -> None:
    base = bases(family)
    expected = load_model(base, CPU, torch.float32)
    model, _ = installed(base, kind(rank=4, alpha=6.0, init=init), Material(rows(), 1))  # type: ignore[arg-type]
    again, _ = installed(base, kind(rank=4, alpha=6.0, init=init), Material(rows(), 1))  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=0, atol=1e-5)
        with adapter_disabled(model):
            assert torch.equal(model(IDS).logits, expected(IDS).logits)
    for (name, layer), other in zip(lora_layers(model).items(), lora_layers(again).values(), strict=True):
        assert torch.equal(layer.lora_a, other.lora_a), name  # the same seed, the same start
        assert bool(layer.lora_b.any()) == (init in ("orthogonal", "pissa", "olora"))
        assert (layer.start() is not None) == (init in ("pissa", "olora"))


@pytest.mark.parametrize(("family", "init", "rslora", "dora"), [
    ("llama", "pissa", False, False), ("llama", "olora", True, False), ("qwen2", "olora", False, True),
    ("gpt2", "pissa", True, False), ("gpt_neox", "pissa", False, True), ("llama", "orthogonal", False, False),
    ("phi3", "gaussian", False, False),
])
def test_peft_trains_alike_and_reads_the_file(family: str, init: str, rslora: bool, dora: bool, tmp_path: Path,
                                              bases: Callable[[str], Path]) -> None:
    adapter = (DoraConfig if dora else LoraConfig)(
        rank=4, alpha=6.0, rslora=rslora, init=init)  # type: ignore[arg-type]
    pair = make_pair(bases(family), family, adapter, {"init_lora_weights": init})
    assert pair.logit_difference() <= 1e-5
    train_both(pair, 10, *adam(pair, 1e-3), rate=1e-3)
    assert max(pair.differences().values()) <= 1e-5
    assert pair.logit_difference() <= 1e-5
    save_adapter(tmp_path / "a", pair.ours, adapter.model_copy(
        update={"target_modules": tuple(TARGETS.get(family, USUAL_TARGETS))}), "base")
    with torch.no_grad():
        logits = pair.ours(IDS).logits
        torch.testing.assert_close(read_by_peft(bases(family), tmp_path / "a")(IDS).logits, logits, rtol=0, atol=1e-5)
        loaded = load_model(bases(family), CPU, torch.float32)
        load_adapter(tmp_path / "a", loaded)
        torch.testing.assert_close(loaded(IDS).logits, logits, rtol=0, atol=1e-5)
    ranks = {pair.lora_a.shape[0] for pair in read_adapter(tmp_path / "a").pairs.values()}
    assert ranks == {8 if init in ("pissa", "olora") else 4}


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_ours_starts_where_peft_does(init: str, bases: Callable[[str], Path]) -> None:
    pair = make_pair(bases("llama"), "llama", LoraConfig(rank=4, alpha=6.0), {"init_lora_weights": init})
    model, _ = installed(bases("llama"), LoraConfig(rank=4, alpha=6.0, init=init,  # type: ignore[arg-type]
                                                    target_modules=tuple(USUAL_TARGETS)), Material([], 0))
    for name, layer in lora_layers(model).items():
        theirs = pair.layers[name]  # which holds peft's numbers
        torch.testing.assert_close(layer.lora_b @ layer.lora_a, theirs.lora_b @ theirs.lora_a, rtol=0, atol=1e-5)


def test_dropout_leaves_the_part_of_the_base_alone(bases: Callable[[str], Path]) -> None:
    for kind in (LoraConfig, DoraConfig):
        pair = make_pair(bases("llama"), "llama", kind(rank=4, alpha=6.0, dropout=0.3, init="pissa"),
                         {"init_lora_weights": "pissa"})
        train_both(pair, 5, *adam(pair, 1e-3), rate=1e-3)
        assert max(pair.differences().values()) <= 1e-5


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_checkpoint_brings_back_the_start(init: str, family: str, bases: Callable[[str], Path]) -> None:
    adapter = LoraConfig(rank=4, init=init)  # type: ignore[arg-type]
    model, adaptation = installed(bases(family), adapter, Material(rows(), 1))
    values = {name: value.detach().clone() + 0.01 for name, value in adaptation.parameters(model).items()}
    other, second = installed(bases(family), adapter, Material(rows(), 2))  # as if the start came out otherwise
    for target, owner in ((model, adaptation), (other, second)):
        with torch.no_grad():
            for name, parameter in owner.parameters(target).items():
                parameter.copy_(values[name])
    second.load_state(adaptation.state())
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, other(IDS).logits)


@pytest.mark.parametrize("init", ["kaiming", "pissa"])
@pytest.mark.parametrize("kind", [LoraConfig, DoraConfig])
def test_counts_and_sizes_are_those_of_the_file(init: str, kind: type[LoraConfig | DoraConfig], tmp_path: Path,
                                                bases: Callable[[str], Path]) -> None:
    for dtype in ("fp32", "bf16"):
        adapter = kind(rank=4, init=init, save_dtype=dtype)  # type: ignore[arg-type]
        model, adaptation = installed(bases("gpt2"), adapter, Material([], 0))
        save_adapter(tmp_path / dtype, model, adapter, "base")
        targets = select_targets(module_table(load_model(bases("gpt2"), CPU, torch.float32)), adapter)
        assert file_bytes(adapter_shapes(targets, adapter), dtype) == (tmp_path / dtype / WEIGHTS_NAME).stat().st_size
        assert trained_parameters(targets, adapter) == sum(
            parameter.numel() for parameter in adaptation.parameters(model).values())


@pytest.mark.parametrize("shape", [(300, 500), (700, 260)])
def test_the_quick_decomposition_is_that_of_the_whole_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(*shape, generator=generator) + torch.randn(shape[0], 4, generator=generator) @ torch.randn(
        4, shape[1], generator=generator)
    u, s, vh = leading_svd(matrix, 16, torch.Generator().manual_seed(1))
    whole = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(s, whole[:16], rtol=1e-2, atol=0)
    rest = (matrix - u * s @ vh).square().sum()
    assert float(rest) <= 1.002 * float(whole[16:].square().sum())
    torch.testing.assert_close(u.T @ u, torch.eye(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(vh @ vh.T, torch.eye(16), rtol=0, atol=1e-5)


def test_the_running_decomposition_is_that_of_all_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.cat([torch.tensor([9.0, 6.0, 4.0, 3.0]), torch.linspace(1, 0.1, 36)])
    data = torch.randn(600, 40, generator=generator) * scales + 5
    running = RunningSvd(4, generator)
    for part in data.split(150):
        running.update(part)
    _, s, vh = torch.linalg.svd(data - data.mean(dim=0), full_matrices=False)
    assert ((running.directions * vh[:4]).sum(dim=1).abs() > 0.99).all()
    assert running.explained == pytest.approx(float(s[:4].square().sum() / s.square().sum()), rel=1e-2)


def _noting(seen: dict[str, torch.Tensor], name: str, used: torch.Tensor) -> Callable[..., None]:
    def note(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[name] = inputs[0][used]

    return note


def test_eva_finds_what_peft_finds(bases: Callable[[str], Path]) -> None:
    from peft import EvaConfig, get_eva_state_dict
    from peft import LoraConfig as PeftConfig
    from transformers import AutoModelForCausalLM

    material = Material(rows(), 1)
    model, adaptation = installed(bases("llama"), LoraConfig(rank=4, init="eva", target_modules=tuple(USUAL_TARGETS)),
                                  material)
    config = PeftConfig(r=4, target_modules=USUAL_TARGETS, init_lora_weights="eva", task_type="CAUSAL_LM",
                        eva_config=EvaConfig(rho=1.0))
    ids = torch.stack([torch.from_numpy(row.input_ids).long() for row in material.rows])
    used = torch.stack([torch.from_numpy(row.supervised) for row in material.rows])
    batches = [{"input_ids": ids[start:start + 20], "attention_mask": torch.ones_like(ids[start:start + 20]),
                "labels": ids[start:start + 20].masked_fill(~used[start:start + 20], -100)} for start in (0, 20)]
    theirs = get_eva_state_dict(AutoModelForCausalLM.from_pretrained(bases("llama"), dtype=torch.float32), batches,
                                config, show_progress_bar=False)
    assert theirs.keys() == lora_layers(model).keys()
    seen: dict[str, torch.Tensor] = {}
    for name, layer in lora_layers(model).items():
        layer.register_forward_pre_hook(_noting(seen, name, used))
    with torch.no_grad():
        model(ids)
    for name, layer in lora_layers(model).items():
        lora_a = layer.lora_a.detach()
        torch.testing.assert_close(lora_a @ lora_a.T, torch.eye(4), rtol=0, atol=1e-4)
        inputs = (seen[name] - seen[name].mean(dim=0)).double()
        best = torch.linalg.svdvals(inputs)[:4].square().sum()
        ours, peft = ((inputs @ found.double().T).square().sum() for found in (lora_a, theirs[name]))
        assert ours > 0.98 * best, name
        assert ours > 0.99 * peft, name
    notes = [event.message for event in adaptation.begin(model, 0, 10)]  # type: ignore[attr-defined]
    assert len(notes) == 1 and "EVA" in notes[0] and "9 layers" in notes[0]
    assert not list(adaptation.begin(model, 3, 10))


def test_eva_without_enough_tokens_keeps_the_usual_start(bases: Callable[[str], Path]) -> None:
    model, _ = installed(bases("llama"), LoraConfig(rank=4, init="eva"), Material([], 0))
    plain, _ = installed(bases("llama"), LoraConfig(rank=4), Material([], 0))
    for layer, other in zip(lora_layers(model).values(), lora_layers(plain).values(), strict=True):
        assert torch.equal(layer.lora_a, other.lora_a)


def test_what_can_not_be_is_refused_at_its_field(bases: Callable[[str], Path]) -> None:
    gpt2, llama = read_card(bases("gpt2")), read_card(bases("llama"))

    def fields(adapter: LoraConfig, card) -> list[str]:
        return [field for field, _, _ in method_problems(RunConfig(adapter=adapter), card)]

    assert fields(LoraConfig(rank=3, init="orthogonal"), llama) == ["adapter.init"]
    assert fields(LoraConfig(rank=4, init="orthogonal", rank_pattern={"q_proj": 5}), llama) == ["adapter.init"]
    assert fields(LoraConfig(rank=4, init="pissa", fused_parts=("q",)), gpt2) == ["adapter.init"]
    assert fields(LoraConfig(rank=4, init="pissa"), gpt2) == []


def test_a_start_in_sixteen_bits_leaves_the_base_exact() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 32, dtype=torch.bfloat16)
    before = linear.weight.detach().clone()
    layer = LoraLayer(linear, 4, 8.0)
    with torch.no_grad():
        layer.lora_b.normal_()
        layer.count_from_here()
        x = torch.randn(5, 48, dtype=torch.bfloat16)
        assert torch.equal(linear.weight, before)
        torch.testing.assert_close(layer(x), linear(x))
