"""What a job tells while it runs: frozen records of plain values, JSON both ways.

A job is a generator of these. It ends with exactly one `Result`, or by raising; the engine and
the CLI turn what was raised into one `Failed`. Tensors never travel in an event.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from core.errors import Cancelled, describe
from core.records import AdapterCard, ModelCard, ModelEntry, Receipt, RowPreview
from core.words import plural

Outcome = Literal["finished", "stopped"]


@dataclass(frozen=True)
class Started:
    """The job has begun; the models are not loaded yet."""

    job: str
    run_dir: Path | None = None
    time: float = 0.0  # seconds since the epoch
    pid: int = 0


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units in the present stage; `total` 0 means not known."""

    stage: str
    done: int
    total: int
    unit: str = ""


@dataclass(frozen=True)
class Note:
    """A line for the log that asks nothing of the person."""

    message: str


@dataclass(frozen=True)
class Warned:
    """Something the person should know; the job goes on."""

    message: str
    hint: str = ""


@dataclass(frozen=True)
class Planned:
    """The training run after all `auto` values are resolved, before the first step."""

    total_steps: int
    train_rows: int
    validation_rows: int
    trainable_parameters: int
    total_parameters: int
    adapter_bytes: int
    device: str
    dtype: str
    packing: bool
    first_step: int = 0  # greater than zero when a run goes on
    threads: int = 0  # that compute, where the device is a CPU

    @property
    def way(self) -> str:
        """Where and how it computes, in words."""
        threads = f" with {plural(self.threads, 'thread')}" if self.threads else ""
        return f"{self.device}{threads}, {self.dtype}, {'packed' if self.packing else 'padded'} rows"


@dataclass(frozen=True)
class StepDone:
    """One optimizer step. `loss` is the mean over supervised tokens of the step."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int  # without padding
    supervised_tokens: int
    seconds: float
    rss_bytes: int
    device_bytes: int = 0


@dataclass(frozen=True)
class Evaluated:
    """Validation loss, mean over supervised tokens."""

    step: int
    loss: float
    tokens: int
    seconds: float
    best: bool


@dataclass(frozen=True)
class RanksChosen:
    """The ranks by module name from `step` on, where the method moves them (AdaLoRA); step 0 is the start."""

    step: int
    ranks: dict[str, int]
    budget: int  # how many ranks all matrices together may keep at this step


@dataclass(frozen=True)
class CheckpointSaved:
    """A whole checkpoint lies on the disk."""

    step: int
    path: Path
    bytes: int
    seconds: float


@dataclass(frozen=True)
class ModelInspected:
    """The answer to InspectModel."""

    card: ModelCard


@dataclass(frozen=True)
class ModelsListed:
    """The answer to ListModels."""

    entries: tuple[ModelEntry, ...]


@dataclass(frozen=True)
class AdapterInspected:
    """The answer to InspectAdapter."""

    card: AdapterCard


@dataclass(frozen=True)
class DataScanned:
    """What a dataset holds, measured with the chosen model's tokenizer.

    Of a large dataset the rows (where they are no texts), the format and rows that can not be read
    are exact; all else is estimated from a sample.
    """

    files: tuple[str, ...]
    format: str
    rows: int
    tokens: int
    supervised_tokens: int
    rows_cut: int
    rows_without_supervision: int
    longest: int
    length_counts: tuple[int, ...]  # histogram over equal bins from 0 to `longest`
    problems: tuple[str, ...] = ()
    sampled: int = 0  # rows of the sample that was tokenised; 0: all were, and every figure is exact
    measured: float = 1.0  # share of the files that is read; below 1 there is more to come


@dataclass(frozen=True)
class MemoryMeasured:
    """The most memory that real steps on the longest rows have needed. `tokens` is how many were computed at once."""

    bytes: int
    device: str
    tokens: int
    seconds: float  # of the steps


@dataclass(frozen=True)
class RowsPrepared:
    """Rows asked for by PreviewRows."""

    total_rows: int
    rows: tuple[RowPreview, ...]


@dataclass(frozen=True)
class TokenGenerated:
    """A piece of text of the answer of 'base' or 'tuned'."""

    column: Literal["base", "tuned"]
    text: str


@dataclass(frozen=True)
class GenerationDone:
    """One column's answer is complete."""

    column: Literal["base", "tuned"]
    tokens: int
    seconds: float
    stopped: bool  # by the person or at the limit, not by the model's own end


@dataclass(frozen=True)
class ReceiptReady:
    """The export was loaded again and compared."""

    receipt: Receipt


@dataclass(frozen=True)
class Finished:
    """A run came to its end or was stopped; what it has is saved at `path`."""

    outcome: Outcome
    path: Path


@dataclass(frozen=True)
class Result:
    """The last event of a job; its named values stand beside "event" in the JSON."""

    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The job ended by an error, or because the person stopped it (`cancelled`)."""

    message: str
    hint: str = ""
    details: str = ""
    cancelled: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """The event for what a job raised."""
        words = describe(error)
        return cls(words.message, words.hint, words.details, isinstance(error, Cancelled))


Event = (
    Started | Progress | Note | Warned | Planned | StepDone | Evaluated | RanksChosen | CheckpointSaved
    | ModelInspected | AdapterInspected | ModelsListed | DataScanned | RowsPrepared | MemoryMeasured | TokenGenerated
    | GenerationDone | ReceiptReady | Finished | Result | Failed
)
EVENT_TYPES: dict[str, type] = {kind.__name__: kind for kind in Event.__args__}


def to_plain(event: Event) -> dict[str, Any]:
    """An event as a dictionary that JSON can hold, with its class name under "event"."""
    values = event.values if isinstance(event, Result) else _plain_fields(event)
    return {"event": type(event).__name__, **{key: _plain(value) for key, value in values.items()}}


def to_json(event: Event) -> str:
    """An event as one line of JSON; numbers that are not finite become "NaN" or "Infinity" strings."""
    line = json.dumps(to_plain(event), ensure_ascii=False, allow_nan=False)
    # half a surrogate pair, from a damaged dataset or file name, has no UTF-8: it must not end a run
    return line.encode("utf-8", "replace").decode("utf-8")


def from_plain(values: dict[str, Any]) -> Event:
    """The event that `to_plain` wrote.

    Raises:
        ValueError: not an event of ours.
    """
    values = dict(values)
    name = values.pop("event", None)
    if name not in EVENT_TYPES:
        raise ValueError(f"unknown event {name!r}")
    if name == "Result":
        return Result(values)
    return _adapter(EVENT_TYPES[name]).validate_python(values)


def from_json(line: str | bytes) -> Event:
    """The event in one line of JSON. Raises ValueError where there is none."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("an event is a JSON object")
    return from_plain(values)


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _plain_fields(record: Any) -> dict[str, Any]:
    return {item.name: getattr(record, item.name) for item in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {key: _plain(item) for key, item in _plain_fields(value).items()}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
