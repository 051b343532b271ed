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

Outcome = Literal["finished", "stopped"]
LARGEST_DELTA_ERROR = 0.25  # of the change, relative; above it a rounded export is called what it is


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
class ModuleInfo:
    """One module with a weight. `kind` is the last part of its name, `layer` -1 outside the layers.

    "Experts" is a parameter that holds one linear map of each of `experts` experts; the sizes are those of one map.
    `qkv_rows` says how many outputs are query, key and value where one layer computes all three. `tensors` are
    its own parameters with their shapes; `tied_to` names the embedding whose weight an output head shares.
    """

    name: str
    kind: str
    layer: int
    type: Literal["Linear", "Conv1D", "Embedding", "Conv1d", "Conv2d", "Experts", "Other"]
    in_features: int
    out_features: int
    parameters: int
    is_output_head: bool = False
    qkv_rows: tuple[int, int, int] | None = None
    experts: int = 0
    is_input_embedding: bool = False
    tied_to: str = ""
    tensors: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class ModelCard:
    """What is known of a base model without loading its weights."""

    path: Path
    name: str
    model_type: str
    architecture: str
    parameters: int
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    vocabulary: int
    context_length: int  # tokens; 0 where the config does not say
    dtype: str
    bytes_on_disk: int
    has_chat_template: bool
    tied_embeddings: bool
    origin: str  # a sentence: where the weights came from
    fingerprint: str  # SHA-256 over the weight files' headers, sizes and sampled contents
    modules: tuple[ModuleInfo, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelInspected:
    """The answer to InspectModel."""

    card: ModelCard


@dataclass(frozen=True)
class ModelEntry:
    """A model on this machine. `name` is what ModelConfig.path may hold; "starter" stands for the starter."""

    name: str
    path: Path
    origin: Literal["starter", "library", "hub cache", "folder"]  # a folder: anywhere else on this machine
    bytes: int  # on the disk
    state: Literal["ready", "needs import", "refused"]
    reason: str = ""  # why it is refused, one sentence


@dataclass(frozen=True)
class ModelsListed:
    """The answer to ListModels."""

    entries: tuple[ModelEntry, ...]


@dataclass(frozen=True)
class AdaptedModule:
    """One module of an adapter. The norms are of its weight change; `share` is that to the weight's norm,
    None where no base is known."""

    name: str
    rank: int
    scale: float  # the factor of B A
    delta_norm: float | None = None  # None for DoRA where no base is known
    share: float | None = None


@dataclass(frozen=True)
class BaseMatch:
    """A model on this machine that an adapter fits. "same": the very files it was trained on; "fits": by its shapes."""

    name: str
    path: Path
    match: Literal["same", "fits"]


@dataclass(frozen=True)
class LoaderVerdict:
    """What a program makes of an adapter in one form."""

    loader: str
    reads: Literal["exactly", "wrongly", "refuses"]
    why: str = ""  # one sentence


@dataclass(frozen=True)
class AdapterCard:
    """What is known of an adapter.

    `settings` holds the fields of the table [adapter] with which a run can go on from it, empty where none can
    (`unlike` says why). `loaders` and `compatible` are the verdicts on the PEFT and on the compatible form.
    """

    path: Path
    name: str
    method: str
    rank: int  # the largest
    parameters: int
    bytes: int
    dtype: str
    base_name: str  # as the adapter tells it; "" where it tells none
    base: str  # the model that the shares refer to; "" where none is known
    bases: tuple[BaseMatch, ...] = ()
    modules: tuple[AdaptedModule, ...] = ()
    loaders: tuple[LoaderVerdict, ...] = ()
    compatible: tuple[LoaderVerdict, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    unlike: str = ""
    origin: str = ""  # a sentence: what is known of where it came from

    @property
    def best_form(self) -> Literal["peft", "compatible"]:
        """The form that more loaders read exactly; the plain one where it makes no difference."""
        right = [sum(verdict.reads == "exactly" for verdict in form) for form in (self.loaders, self.compatible)]
        return "compatible" if right[1] > right[0] else "peft"


@dataclass(frozen=True)
class AdapterInspected:
    """The answer to InspectAdapter."""

    card: AdapterCard


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `role` is system, user, assistant, tool or text."""

    role: str
    content: str
    trained: bool = False


@dataclass(frozen=True)
class Token:
    """One token of a prepared row as shown to the person."""

    text: str
    trained: bool
    special: bool


@dataclass(frozen=True)
class RowPreview:
    """A row as conversation and as tokens."""

    index: int
    messages: tuple[Message, ...]
    tokens: tuple[Token, ...]
    cut: bool  # longer than the limit


@dataclass(frozen=True)
class DataScanned:
    """What a dataset holds, measured with the chosen model's tokenizer."""

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
class ReceiptRow:
    """One fixed prompt of a receipt."""

    prompt: str
    text_adapter: str
    text_export: str
    largest_difference: float
    first_choice_agreement: float  # share of positions with the same most likely token


@dataclass(frozen=True)
class Receipt:
    """Proof that an export equals base + adapter, measured on what was read back from the disk."""

    kind: Literal["adapter", "merged"]
    path: Path
    dtype: str
    passed: bool
    largest_difference: float  # of logits
    tolerance: float
    first_choice_agreement: float
    realised_delta_error: float  # relative error of the weight change that arrived in the files
    rows: tuple[ReceiptRow, ...]
    explanation: str

    @property
    def change_is_rounded_away(self) -> bool:
        """The files are what they should be, but their number type is too coarse for the adapter's change."""
        return self.passed and self.realised_delta_error > LARGEST_DELTA_ERROR


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
    | ModelInspected | AdapterInspected | ModelsListed | DataScanned | RowsPrepared | TokenGenerated | GenerationDone
    | ReceiptReady | Finished | Result | Failed
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
