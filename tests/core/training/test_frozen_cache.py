"""What frozen layers give is kept from the first epoch: same losses, same adapter, nothing left behind."""

import errno
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FAMILIES, build_tiny, some_quick

from core import files
from core.config import LoraConfig, RunConfig, parse_config
from core.control import Control
from core.data.batching import pack, pad
from core.data.template import EncodedRow
from core.events import Evaluated, Event, Note, StepDone
from core.jobs import Resume, Train
from core.lora.adaptation import Adaptation
from core.lora.beside import add_tokens
from core.lora.inject import lora_layers
from core.lora.method import Material, train_mode
from core.models.load import load_model, load_tokenizer
from core.runs.folder import RunFolder
from core.training.frozen_cache import RowStore
from core.training.frozen_choice import choose_frozen, pays
from core.training.frozen_part import FrozenPart, find_frozen_part
from core.training.loop import resume, train
from core.training.loss import chunked_loss, direct_loss
from core.training.segments import segmented_attention

CPU = torch.device("cpu")
UPPER = {"rank": 4, "first_layer": 1}


def _config(model: Path, data: Path, adapter: dict | None = None, **training: object) -> RunConfig:
    training = {"epochs": 2, "batch_size": 12, "learning_rate": 1e-2, "warmup_steps": 2, "device": "cpu",
                "dtype": "fp32", "evaluate_every": 5} | training
    return parse_config({"model": {"path": str(model)}, "adapter": adapter or UPPER, "training": training,
                         "data": {"train": [str(data)], "validation_fraction": 0.1}})


def _train(config: RunConfig, folder: Path) -> list[Event]:
    return list(train(Train(config, folder), Control()))


def _losses(events: Sequence[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, StepDone | Evaluated)]


def _notes(events: Sequence[Event]) -> str:
    return " ".join(event.message for event in events if isinstance(event, Note))


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def _rows() -> list[EncodedRow]:
    random = np.random.default_rng(0)
    return [EncodedRow(index, random.integers(5, 380, size=length).astype(np.int32),
                       np.arange(length) >= length // 2, False, length) for index, length in enumerate((12, 90, 33))]


def _installed(folder: Path, **tables: dict):
    """A model with what the run file's tables ask for."""
    config = parse_config({"model": {"path": str(folder)}, **tables})
    model = load_model(folder, CPU, torch.float32)
    tokenizer = load_tokenizer(folder)
    added = add_tokens(tokenizer, config.adapter.new_tokens if isinstance(config.adapter, LoraConfig) else ())
    Adaptation(config).install(model, Material(_rows(), 0, tokenizer, added))
    return model


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", some_quick([*FAMILIES, "falcon"]))
def test_a_model_of_every_family_starts_in_the_middle(family: str, packed: bool, tmp_path: Path) -> None:
    model = _installed(build_tiny(family, tmp_path / family), adapter=UPPER)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.05)
    part, reason = find_frozen_part(model)
    assert part is not None, reason
    assert part.depth == 1
    batch = (pack if packed else pad)(_rows())[0]
    if packed and family != "falcon":
        with segmented_attention(model):
            _same_from_the_middle(model, part, batch, chunked_loss)
    else:
        _same_from_the_middle(model, part, batch, direct_loss)


def _same_from_the_middle(model, part: FrozenPart, batch, loss) -> None:
    def computed():
        model.zero_grad()
        value = loss(model, batch)
        value.backward()
        return [value.detach(), *(layer.lora_a.grad for layer in lora_layers(model).values())]

    states = part.states(batch)
    assert not states.requires_grad
    whole = computed()
    with part.given(states):
        parted = computed()
    assert all(torch.equal(mine, other) for mine, other in zip(parted, whole, strict=True))
    assert torch.equal(loss(model, batch), whole[0])  # all layers are in their places again


def test_no_graph_is_built_below_the_lowest_trained_layer(tiny_model: Path) -> None:
    model = _installed(tiny_model, adapter={"rank": 4, "first_layer": 2})
    train_mode(model)
    needed = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _layer, _inputs, output: needed.append(output.requires_grad))
    chunked_loss(model, pad(_rows())[0])
    assert needed == [False, False, True]


@pytest.mark.parametrize("packing", ["on", pytest.param("off", marks=pytest.mark.full)])
def test_losses_and_adapter_are_the_same_with_and_without(tiny_model: Path, data: Path, tmp_path: Path, packing: str,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(tiny_model, data, UPPER | {"dropout": 0.1}, packing=packing)
    off = _train(config.model_copy(update={"training": config.training.model_copy(update={"frozen_cache": "off"})}),
                 tmp_path / "off")
    computed = []
    real = FrozenPart.states
    monkeypatch.setattr(FrozenPart, "states", lambda self, batch: computed.append(batch.rows) or real(self, batch))
    config = config.model_copy(update={"training": config.training.model_copy(update={"frozen_cache": "on"})})
    on = _train(config, tmp_path / "on")
    assert "The output of the 1 frozen layer is kept on the disk (up to " in _notes(on)
    assert "frozen" not in _notes(off)
    assert _losses(on) == pytest.approx(_losses(off), abs=1e-5)
    mine, other = _adapter(tmp_path / "on"), _adapter(tmp_path / "off")
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)
    # the probe, and then every row once: the 36 that are trained and the 4 that are held out
    probed = sum(1 for rows in computed if any(row.index == computed[0][0].index for row in rows)) - 1
    assert sum(len(rows) for rows in computed) - sum(len(rows) for rows in computed[:probed]) == 40
    assert RunFolder(tmp_path / "on").config().training.frozen_cache == "on"
    assert not list((tmp_path / "on").glob(f".*{files.TEMPORARY_SUFFIX}"))


def test_a_killed_run_goes_on_to_the_same_adapter_bit_for_bit(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, data, UPPER | {"dropout": 0.2}, frozen_cache="on", checkpoint_every=4)
    _train(config, tmp_path / "whole")
    stream = train(Train(config, tmp_path / "killed"), Control())
    for event in stream:
        if isinstance(event, StepDone):
            assert not list((tmp_path / "killed").glob(f".*{files.TEMPORARY_SUFFIX}"))  # the file has no name
            if event.step == 5:
                break
    log = (tmp_path / "killed" / "events.jsonl").read_bytes()
    stream.close()
    (tmp_path / "killed" / "events.jsonl").write_bytes(log)
    list(resume(Resume(tmp_path / "killed"), Control()))
    assert (tmp_path / "killed" / "adapter" / "adapter_model.safetensors").read_bytes() \
        == (tmp_path / "whole" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_disk_that_gets_full_slows_the_run_and_does_not_end_it(tiny_model: Path, data: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    off = _train(_config(tiny_model, data, frozen_cache="off"), tmp_path / "off")
    real, closed = RowStore.write, []

    def full(self: RowStore, index: int, states: torch.Tensor) -> None:
        if sum(self._starts >= 0) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, index, states)

    monkeypatch.setattr(RowStore, "write", full)
    close = RowStore.close
    monkeypatch.setattr(RowStore, "close", lambda self: closed.append(self._file is None) or close(self))
    on = _train(_config(tiny_model, data, frozen_cache="on"), tmp_path / "on")
    assert "computed anew from here on, as the disk is full." in _notes(on)
    assert _losses(on) == pytest.approx(_losses(off), abs=1e-5)
    assert closed == [False, True]  # at once, and when the run ends


def test_others_on_the_disk_go_before(tiny_model: Path, data: Path, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(tiny_model, data, frozen_cache="on", max_steps=4)
    free = [10_000_000]
    monkeypatch.setattr(files, "free_bytes", lambda _path: free[0])
    events = _train(config, tmp_path / "a")
    assert "computed anew from here on, as the disk is full." in _notes(events)
    free[0] = 500_000
    events = _train(config, tmp_path / "b")
    assert "kB, more than half of the 500 kB that are free on this disk" in _notes(events)
    assert RunFolder(tmp_path / "b").config().training.frozen_cache == "off"


@pytest.mark.parametrize(("tables", "reason"), [
    ({"adapter": {"rank": 2}}, "the lowest layer is trained"),
    ({"adapter": {"rank": 2, "target_modules": ["embed_tokens", "layers.2.self_attn.q_proj"]}}, "besides the layers"),
    ({"adapter": UPPER | {"new_tokens": ["<new>"]}}, "besides the layers"),
    ({"adapter": UPPER | {"modules_to_save": ["embed_tokens"]}}, "besides the layers"),
    ({"adapter": UPPER, "prefix": {"length": 4}}, "besides the layers"),
    ({"adapter": UPPER, "bottleneck": {"size": 8}}, "the lowest layer is trained"),
    ({"adapter": {"method": "full"}}, "the lowest layer is trained"),
    ({"adapter": {"rank": 2, "target_modules": ["lm_head"]}}, "no layer is trained"),
])
def test_what_may_change_the_states_refuses_it(tables: dict, reason: str, tmp_path: Path) -> None:
    part, found = find_frozen_part(_installed(build_tiny("llama", tmp_path / "llama"), **tables))
    assert part is None
    assert reason in found


def test_dropout_below_refuses_it(tiny_model: Path) -> None:
    model = _installed(tiny_model, adapter=UPPER)
    model.model.layers[0].self_attn.train()
    part, reason = find_frozen_part(model)
    assert part is None
    assert "may be random" in reason


def test_what_is_trained_above_does_not_refuse_it(tmp_path: Path) -> None:
    folder = build_tiny("llama", tmp_path / "llama")
    for tables in ({"adapter": UPPER | {"modules_to_save": ["lm_head"]}}, {"adapter": {"method": "full",
                   "first_layer": 1}}, {"adapter": UPPER, "bottleneck": {"size": 8, "first_layer": 2}}):
        part, reason = find_frozen_part(_installed(folder, **tables))
        assert part is not None, reason
        assert part.depth == 1


def test_auto_leaves_it_where_it_would_not_pay(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    events = _train(_config(tiny_model, data, max_steps=4), tmp_path / "run")
    assert "computed anew in every epoch, as reading it from the disk would save little or nothing." in _notes(events)
    assert RunFolder(tmp_path / "run").config().training.frozen_cache == "off"


@pytest.mark.parametrize(("adapter", "choice", "told"), [
    (UPPER, "auto", ""), (UPPER, "on", "not used, as no row is seen twice"),
    ({"rank": 4}, "on", "not used, as the lowest layer is trained"),
])
def test_without_anything_to_choose_the_choice_stays(adapter: dict, choice: str, told: str, tiny_model: Path,
                                                     data: Path, tmp_path: Path) -> None:
    epochs = 1 if adapter is UPPER else 2
    events = _train(_config(tiny_model, data, adapter, frozen_cache=choice, epochs=epochs), tmp_path / "run")
    assert told in _notes(events)
    assert ("frozen" in _notes(events)) == bool(told)
    assert RunFolder(tmp_path / "run").config().training.frozen_cache == choice


def test_several_processes_do_without(tiny_model: Path, tmp_path: Path) -> None:
    config = parse_config({"training": {"frozen_cache": "on"}})
    model = _installed(tiny_model, adapter=UPPER)
    setup = SimpleNamespace(config=config, model=model, ranks=SimpleNamespace(several=True))
    stream = choose_frozen(setup, tmp_path)
    assert next(stream).message == "The frozen-layer cache is not used, as several processes share the rows."
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value == (setup, None)


def test_a_model_that_is_put_together_in_another_way_is_computed_anew(
        tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FrozenPart.states
    monkeypatch.setattr(FrozenPart, "states", lambda self, batch: real(self, batch) * 1.01)
    events = _train(_config(tiny_model, data, frozen_cache="on", max_steps=4), tmp_path / "run")
    assert "as this model can not be started in the middle" in _notes(events)
    assert RunFolder(tmp_path / "run").config().training.frozen_cache == "off"


class _Part:
    """Of SmolLM2-135M: 30 layers of 3.54 M numbers."""

    def __init__(self, depth: int, width: int = 576, dtype: torch.dtype = torch.float32) -> None:
        self.depth, self.trained_layers, self.width, self.dtype = depth, 30 - depth, width, dtype
        self.parameters = depth * 3_540_000


def test_it_pays_where_much_is_frozen() -> None:
    assert pays(_Part(20), "cpu")
    assert pays(_Part(5), "cpu")
    assert not pays(_Part(4), "cpu")  # less than a twentieth of a step
    assert not pays(_Part(4), "cuda")
    assert not pays(_Part(20), "cuda")  # a card computes it faster than a disk reads


def test_states_come_back_exactly_also_where_the_disk_takes_them_in_pieces(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """Takes and gives three bytes at a time."""

        def __init__(self, file) -> None:
            self._file = file
            self.seek, self.close = file.seek, file.close

        def write(self, content: memoryview) -> int:
            return self._file.write(content[:3])

        def readinto(self, content: memoryview) -> int:
            return self._file.readinto(content[:3])

    unnamed = files.unnamed_file
    monkeypatch.setattr(files, "unnamed_file", lambda folder: Slow(unnamed(folder)))
    store = RowStore(tmp_path, 3, 0)
    first, second = torch.randn(5, 8), torch.randn(4, 8).bfloat16()
    store.write(2, first)
    store.write(0, second)
    for index, kept in ((0, second), (2, first)):
        into = torch.empty_like(kept)
        store.read(index, into)
        assert torch.equal(into, kept)
    assert [store.has(index) for index in range(3)] == [True, False, True]
    assert not list(tmp_path.iterdir())
    store.close()
    assert not store.has(0)
