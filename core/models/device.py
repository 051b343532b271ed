"""Which device and number type to compute with, and what this machine has."""

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from core import files
from core.config import missing_device
from core.errors import CoreError
from core.memory import CUDA_CONTEXT_BYTES
from core.paths import cache_root
from core.words import memory

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PROBE_SIZE = (512, 1024, 1024)  # tokens, in, out: the shape of a small model's linear layer
_PROBE_SECONDS = 0.25


@dataclass(frozen=True)
class DeviceFacts:
    """One device to compute on. `gflops` maps a number type to its matrix-product speed."""

    device: str  # as in training.device: cpu, mps, cuda:0
    name: str
    memory_bytes: int
    gflops: dict[str, float]  # GFLOP/s; empty where it was not measured


@dataclass(frozen=True)
class MachineFacts:
    """What this machine computes with."""

    devices: tuple[DeviceFacts, ...]
    physical_cores: int
    torch_version: str


def resolve_device(name: str) -> torch.device:
    """The device that `training.device` names; auto takes CUDA, else MPS, else the CPU.

    all is for several processes; one alone takes what auto takes.

    Raises:
        CoreError: this machine has no such device; the hint names those it has.
    """
    if name in ("auto", "all"):
        return torch.device(available_devices()[0])
    if told := missing_device(name, available_devices()):
        raise CoreError(*told)
    return torch.device("cuda:0" if name == "cuda" else name)


def available_devices() -> list[str]:
    """Names of the devices here, the best first."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def gpu_peak_bytes(device: torch.device) -> int:
    """The most that this process has taken of a GPU with CUDA, as the estimate counts it and others feel it.

    That is what torch keeps for itself, in use or not, and what CUDA needs before the first tensor.
    """
    return torch.cuda.max_memory_reserved(device) + CUDA_CONTEXT_BYTES


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number type of the frozen base.

    auto: on CUDA bf16 where the card computes it; on MPS fp32, the one type that every version of
    it computes alike; on the CPU the faster of fp32 and bf16 in a short matrix product.

    Raises:
        CoreError: not a number type.
    """
    if name != "auto":
        if name not in DTYPES:
            raise CoreError(f"{name!r} is no number type.", f"Choose auto, {' or '.join(DTYPES)}.")
        return DTYPES[name]
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float32  # older cards emulate bf16 slowly
    if device.type == "mps":
        return torch.float32
    speeds = matmul_speeds(device)
    # bf16 must win clearly: fp32 is the exact one
    return torch.bfloat16 if speeds["bf16"] > 1.2 * speeds["fp32"] else torch.float32


def matmul_speeds(device: torch.device) -> dict[str, float]:
    """GFLOP/s of a matrix product in fp32 and bf16, measured once per processor, torch and thread count."""
    if device.type == "cpu":
        use_physical_cores()
    key = f"{device_name(device)} | torch {torch.__version__} | {torch.get_num_threads()} threads"
    path = cache_root() / "matmul-speed.json"
    known = _read_speeds(path)
    if key not in known:
        known[key] = {name: _measure(device, DTYPES[name]) for name in ("fp32", "bf16")}
        _keep_speeds(path, known)
    return known[key]


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    tokens, features, outputs = _PROBE_SIZE
    left = torch.ones(tokens, features, device=device, dtype=dtype)
    right = torch.ones(outputs, features, device=device, dtype=dtype)
    torch.nn.functional.linear(left, right)  # warm-up
    _synchronize(device)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < _PROBE_SECONDS:
        begin = time.perf_counter()
        torch.nn.functional.linear(left, right)
        _synchronize(device)
        best = min(best, time.perf_counter() - begin)  # the best one: other programs only slow it down
    return round(2 * tokens * features * outputs / best / 1e9, 1)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _read_speeds(path: Path) -> dict[str, dict[str, float]]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {key: {"fp32": float(value["fp32"]), "bf16": float(value["bf16"])} for key, value in known.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # a missing or damaged cache is measured again


def _keep_speeds(path: Path, known: dict[str, dict[str, float]]) -> None:
    try:
        files.write_text(path, json.dumps(known, indent=2))
    except OSError:
        return  # a cache that can not be kept costs half a second next time, nothing else


def use_physical_cores() -> int:
    """Let torch compute with one thread for each physical core that this process may use.

    OMP_NUM_THREADS, where the person set it, goes before. Returns the number of threads.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(physical_cores())
    return torch.get_num_threads()


def physical_cores() -> int:
    """Physical cores that this process may use, at least one."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return max(1, min(cores, len(affinity(0)))) if affinity else cores


def machine_facts(measure: bool = True) -> MachineFacts:
    """The devices of this machine with their memory and, if `measure`, their speed."""
    devices = tuple(_facts(torch.device(name), measure) for name in available_devices())
    return MachineFacts(devices, physical_cores(), torch.__version__)


def device_memory() -> dict[str, int]:
    """Bytes of memory of every device here, the best first."""
    return {name: _facts(torch.device(name), measure=False).memory_bytes for name in available_devices()}


def free_memory(device: torch.device) -> int:
    """Bytes that a process may still take of a device; MPS shares the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def accelerator_words() -> str:
    """`NVIDIA H100 · 80 GB`: what computes by default; "" where that is the processor."""
    device = resolve_device("auto")
    if device.type == "cpu":
        return ""
    facts = _facts(device, measure=False)
    return f"{facts.name} · {memory(facts.memory_bytes)}"


def _facts(device: torch.device, measure: bool) -> DeviceFacts:
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = psutil.virtual_memory().total  # MPS shares the machine's memory
    return DeviceFacts(str(device), device_name(device), total, matmul_speeds(device) if measure else {})


def device_name(device: torch.device) -> str:
    """The GPU or processor as its maker names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor_name()


def _processor_name() -> str:
    """The processor as its maker names it; on Linux from /proc, where `platform` knows little."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or platform.machine() or "CPU"
    return platform.processor() or platform.machine() or "CPU"
