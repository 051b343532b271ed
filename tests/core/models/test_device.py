"""Devices, number types and the short probe."""

from pathlib import Path

import pytest
import torch

from core.errors import CoreError
from core.models import device
from core.models.load import machine_facts, resolve_device, resolve_dtype
from core.paths import cache_root

CPU = torch.device("cpu")


def test_devices_of_this_machine() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(CoreError, match="no device cuda:77") as caught:
        resolve_device("cuda:77")
    assert "cpu" in caught.value.hint


def test_named_number_types() -> None:
    assert resolve_dtype("fp32", CPU) == torch.float32
    assert resolve_dtype("bf16", CPU) == torch.bfloat16
    with pytest.raises(CoreError, match="no number type"):
        resolve_dtype("int3", CPU)


def test_auto_takes_bf16_only_where_it_is_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    for bf16, expected in [(50.0, torch.float32), (110.0, torch.float32), (300.0, torch.bfloat16)]:
        monkeypatch.setattr(device, "matmul_speeds", lambda _, speed=bf16: {"fp32": 100.0, "bf16": speed})
        assert resolve_dtype("auto", CPU) == expected
    assert resolve_dtype("auto", torch.device("mps")) == torch.float32


def test_probe_is_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(device, "_measure", lambda *values: calls.append(values) or 12.5)
    first = device.matmul_speeds(CPU)
    assert first == device.matmul_speeds(CPU) == {"fp32": 12.5, "bf16": 12.5}
    assert len(calls) == 2
    (cache_root() / "matmul-speed.json").write_text("{damaged")
    assert device.matmul_speeds(CPU) == first


def test_probe_where_the_cache_can_not_be_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("a file where the folder should be")
    monkeypatch.setattr(device, "_measure", lambda *values: 1.0)
    assert device.matmul_speeds(CPU)["fp32"] == 1.0


def test_machine_facts() -> None:
    facts = machine_facts()
    cpu = facts.devices[-1]
    assert cpu.device == "cpu" and cpu.name and cpu.memory_bytes > 2**28
    assert set(cpu.gflops) == {"fp32", "bf16"} and all(speed > 0 for speed in cpu.gflops.values())
    assert facts.physical_cores >= 1
