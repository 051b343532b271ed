"""The jobs a person can ask for: frozen requests, JSON both ways, without torch.

Each is run by one generator of events; `core.engine.server` and `core.__main__` hold the table
from request to generator.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from core.config import RunConfig


@dataclass(frozen=True)
class Train:
    """Train a new run in `run_dir` (created; None: a new folder among the runs)."""

    config: RunConfig
    run_dir: Path | None = None


@dataclass(frozen=True)
class Resume:
    """Go on with an interrupted run from its newest valid checkpoint."""

    run_dir: Path


@dataclass(frozen=True)
class ListModels:
    """Say which models are on this machine -> ModelsListed, Result."""


@dataclass(frozen=True)
class PrepareStarter:
    """Make the starter model ready in the library, if it is not yet -> Result(path, name)."""


@dataclass(frozen=True)
class InspectModel:
    """Describe a model -> ModelInspected."""

    model: str


@dataclass(frozen=True)
class ImportGguf:
    """Dequantise a GGUF file into the library -> Result(path, name)."""

    file: Path


@dataclass(frozen=True)
class DownloadModel:
    """Fetch a model from the hub into the library -> Result(path, name)."""

    repo_id: str
    revision: str = "main"


@dataclass(frozen=True)
class ScanData:
    """Measure a dataset with the model's tokenizer -> DataScanned.

    After `seconds` (0: never) it gives what it has so far; asked again, it goes on from there.
    """

    config: RunConfig
    seconds: float = 0.0


@dataclass(frozen=True)
class PreviewRows:
    """Prepare rows for showing -> RowsPrepared. `search` filters by text, "" is all rows."""

    config: RunConfig
    first: int = 0
    count: int = 1
    search: str = ""


@dataclass(frozen=True)
class ProbeMemory:
    """Train one step on the longest rows in a process of its own, and tell its peak -> MemoryMeasured, Result."""

    config: RunConfig


@dataclass(frozen=True)
class AdapterUse:
    """An adapter folder, or a run folder for its final adapter, and how strongly its change counts (1: as trained)."""

    path: Path
    strength: float = 1.0


@dataclass(frozen=True)
class Generate:
    """Answer `messages` with base and tuned model -> TokenGenerated…, GenerationDone.

    `adapter` None: the base alone. `columns` says who answers. `messages` is one conversation
    for each column, as (role, content) pairs. `adapters` are added to `adapter`, which stands first
    with strength 1; `control.Strengths` changes their strengths while the answer comes.
    """

    model: str
    adapter: Path | None
    conversations: dict[str, tuple[tuple[str, str], ...]]
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    adapters: tuple[AdapterUse, ...] = ()

    @property
    def uses(self) -> tuple[AdapterUse, ...]:
        """All adapters, `adapter` first."""
        return ((AdapterUse(self.adapter),) if self.adapter is not None else ()) + self.adapters


@dataclass(frozen=True)
class InspectAdapter:
    """Describe an adapter folder and find its base on this machine -> AdapterInspected, Result.

    `model` names the base to compare with; "" takes the one that is found by its fingerprint, if any.
    `base` False reads the folder alone, which is quick.
    """

    adapter: Path
    model: str = ""
    base: bool = True


@dataclass(frozen=True)
class MixAdapters:
    """Write a weighted mix of adapters of one base as a new adapter folder -> Result.

    `how`: "linear" adds up A and B (equal ranks, rough), "cat" puts them side by side (exact, the ranks
    add up), "svd" is the best of rank `rank` (0: the largest rank of the adapters).
    """

    adapters: tuple[AdapterUse, ...]
    out: Path
    how: Literal["linear", "cat", "svd"] = "cat"
    rank: int = 0
    save_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


@dataclass(frozen=True)
class Export:
    """Write an adapter or a merged model and its receipt -> ReceiptReady, Result.

    `run_dir` is a run, or an adapter folder made elsewhere; `base` then names its base model ("": the one
    that it names itself). `checkpoint` names a folder below checkpoints/; "" is the run's final adapter.
    `form` "compatible" writes the adapter so that every loader reads it right. `merge_into` "dequantised" merges
    what QLoRA trained into the weights that it was trained over, instead of the base's own.
    """

    run_dir: Path
    to: Literal["adapter", "merged"]
    out: Path
    checkpoint: str = ""
    dtype: Literal["base", "fp32", "bf16", "fp16"] = "base"
    shard_bytes: int = 0  # 0 keeps the base model's own shards
    receipt: bool = True
    form: Literal["peft", "compatible"] = "peft"
    base: str = ""
    merge_into: Literal["original", "dequantised"] = "original"


@dataclass(frozen=True)
class Unload:
    """Free the warm model's memory -> Result."""


Job = (Train | Resume | ListModels | PrepareStarter | InspectModel | ImportGguf | DownloadModel | ScanData
       | PreviewRows | ProbeMemory | Generate | InspectAdapter | MixAdapters | Export | Unload)
JOB_TYPES: dict[str, type] = {kind.__name__: kind for kind in Job.__args__}


def to_plain(job: Job) -> dict[str, Any]:
    """A job as a dictionary that JSON can hold, with its class name under "job"."""
    return {"job": type(job).__name__, **_adapter(type(job)).dump_python(job, mode="json")}


def from_plain(values: dict[str, Any]) -> Job:
    """The job that `to_plain` wrote. Raises ValueError where it is none of ours."""
    values = dict(values)
    name = values.pop("job", None)
    if name not in JOB_TYPES:
        raise ValueError(f"unknown job {name!r}")
    return _adapter(JOB_TYPES[name]).validate_python(values)


def to_json(job: Job) -> str:
    """A job as one line of JSON."""
    return json.dumps(to_plain(job), ensure_ascii=False)


def from_json(text: str | bytes) -> Job:
    """The job that `to_json` wrote."""
    return from_plain(json.loads(text))


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
