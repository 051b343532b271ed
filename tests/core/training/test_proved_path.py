"""That the fast way is right for a model is proved once, and again wherever something differs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from core.config import DataConfig, LoraConfig, ModelConfig, RunConfig, TrainingConfig
from core.data.template import EncodedRow
from core.lora.inject import inject
from core.models.load import load_model
from core.paths import cache_root
from core.training import proved_path as room
from core.training.proved_path import proved_path

CPU = torch.device("cpu")


def _rows(length: int) -> list[EncodedRow]:
    return [EncodedRow(index, np.arange(5, 5 + length, dtype=np.int32) + index, np.arange(length) >= length // 2, False,
                       length) for index in range(4)]


def _config(**training: object) -> RunConfig:
    settings = {"dtype": "fp32", "activation_checkpointing": "off", **training}
    return RunConfig(model=ModelConfig(path="m"), data=DataConfig(train=("d",)), adapter=LoraConfig(rank=2),
                     training=TrainingConfig(**settings))


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    model = load_model(tiny_model, CPU, torch.float32)
    inject(model, LoraConfig(rank=2), seed=0)
    return model


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every proof."""
    done: list[int] = []
    real = room.choose_path

    def counted(*args, **values):
        done.append(1)
        return real(*args, **values)

    monkeypatch.setattr(room, "choose_path", counted)
    return done


def test_the_same_run_is_proved_once(model: PreTrainedModel, proofs: list[int]) -> None:
    first = proved_path(model, _rows(30), _config(), CPU, True, "base")
    second = proved_path(model, _rows(40), _config(), CPU, True, "base")
    assert len(proofs) == 1
    assert first.packed and first.shares
    assert (second.summed_loss, second.packed, second.shares, second.reason) == (
        first.summed_loss, first.packed, first.shares, first.reason)
    lengths = [[batch.input_ids.numel() for batch in path.batches(_rows(30))] for path in (first, second)]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("other", [
    {"fingerprint": "other base"}, {"share": False}, {"config": _config(dtype="bf16")},
    {"config": _config(activation_checkpointing="on")}, {"config": _config(packing="on")},
    {"config": _config().model_copy(update={"adapter": LoraConfig(rank=4)})},
], ids=str)
def test_whatever_differs_is_proved_anew(other: dict, model: PreTrainedModel, proofs: list[int]) -> None:
    asked = {"config": _config(), "device": CPU, "share": True, "fingerprint": "base"}
    proved_path(model, _rows(30), **asked)
    path = proved_path(model, _rows(30), **{**asked, **other})
    assert len(proofs) == 2
    assert path.shares == (asked | other)["share"]


def test_other_code_or_libraries_are_proved_anew(model: PreTrainedModel, proofs: list[int],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    proved_path(model, _rows(30), _config(), CPU, True, "base")
    monkeypatch.setattr(room, "code_digest", lambda *_: "another version")
    proved_path(model, _rows(30), _config(), CPU, True, "base")
    assert len(proofs) == 2


def test_a_model_that_needs_the_plain_way_is_asked_each_time(model: PreTrainedModel, proofs: list[int],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    from core.training import segments

    def leaks(*_, **__):
        raise NotImplementedError

    with monkeypatch.context() as patch:
        patch.setattr(segments, "packed_segments", leaks)
        for _ in range(2):
            assert not proved_path(model, _rows(30), _config(), CPU, True, "base").packed
    assert proved_path(model, _rows(30), _config(), CPU, True, "base").packed
    assert len(proofs) == 3


def test_rows_too_short_to_share_anything_say_nothing_about_longer_ones(model: PreTrainedModel,
                                                                        proofs: list[int]) -> None:
    proved_path(model, _rows(2), _config(), CPU, True, "base")
    assert proved_path(model, _rows(30), _config(), CPU, True, "base").shares
    assert len(proofs) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": [1]}', '{"proved": 7}', '{"proved": [[], 1]}', "\0\0"])
def test_a_damaged_file_costs_a_proof(content: str, model: PreTrainedModel, proofs: list[int]) -> None:
    cache_root().mkdir(parents=True)
    (cache_root() / "proved-paths.json").write_text(content)
    for _ in range(2):
        assert proved_path(model, _rows(30), _config(), CPU, True, "base").packed
    assert len(proofs) == 1


def test_a_disk_that_can_not_be_written_costs_no_run(model: PreTrainedModel, proofs: list[int],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room.files, "write_text", full)
    for _ in range(2):
        assert proved_path(model, _rows(30), _config(), CPU, True, "base").packed
    assert len(proofs) == 2


def test_rows_that_may_share_and_do_not_are_asked_each_time(model: PreTrainedModel, proofs: list[int],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    from core.training import computing_path

    with monkeypatch.context() as patch:
        patch.setattr(computing_path, "compute_prefix", lambda *_: (_ for _ in ()).throw(RuntimeError("once")))
        path = proved_path(model, _rows(30), _config(), CPU, True, "base")
        assert path.packed and not path.shares
    assert proved_path(model, _rows(30), _config(), CPU, True, "base").shares
    assert len(proofs) == 2


def test_the_model_is_left_in_evaluation_mode_either_way(model: PreTrainedModel, proofs: list[int]) -> None:
    for _ in range(2):
        model.train()
        proved_path(model, _rows(30), _config(), CPU, True, "base")
        assert not any(module.training for module in model.modules())
    assert len(proofs) == 1


def test_only_so_many_are_kept(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, proofs: list[int]) -> None:
    monkeypatch.setattr(room, "_MOST_KEPT", 2)
    for base in ("one", "two", "three"):
        proved_path(model, _rows(30), _config(), CPU, True, base)
    proved_path(model, _rows(30), _config(), CPU, True, "three")
    assert len(proofs) == 3
    proved_path(model, _rows(30), _config(), CPU, True, "one")
    assert len(proofs) == 4
