"""Facts that events carry: of models, adapters, rows and receipts. Frozen records of plain values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

LARGEST_DELTA_ERROR = 0.25  # of the change, relative; above it a rounded export is called what it is


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
class ModelEntry:
    """A model on this machine. `name` is what ModelConfig.path may hold; "starter" stands for the starter."""

    name: str
    path: Path
    origin: Literal["starter", "library", "hub cache", "folder"]  # a folder: anywhere else on this machine
    bytes: int  # on the disk
    state: Literal["ready", "needs import", "refused"]
    reason: str = ""  # why it is refused, one sentence


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

    `settings` holds the tables of a run file with which a run can go on from it, empty where none can (`unlike`
    says why). `loaders` and `compatible` are the verdicts on the PEFT and on the compatible form.
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
    compatible_parameters: int = 0  # numbers of the compatible form, padded to one rank
    settings: dict[str, Any] = field(default_factory=dict)
    unlike: str = ""
    origin: str = ""  # a sentence: what is known of where it came from
    quantisation: Literal["", "nf4", "int8"] = ""  # how the base was held while it was trained, where that is known

    @property
    def best_form(self) -> Literal["peft", "compatible"]:
        """The form that more loaders read exactly; the plain one where it makes no difference."""
        right = [sum(verdict.reads == "exactly" for verdict in form) for form in (self.loaders, self.compatible)]
        return "compatible" if right[1] > right[0] else "peft"


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
