"""The table [adapter]: a union of methods told apart by `method`, each with its own fields."""

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator

from core.config.section import SaveDtype, Section, option
from core.patterns import pattern_problem

TARGET_PRESETS = ("all-linear", "attention", "q-v")


class TargetConfig(Section):
    """Which layers a method changes, and how its file is saved."""

    target_modules: str | tuple[str, ...] = option(
        "all-linear", "Target layers",
        "A preset (all-linear, attention, q-v), a list of module names or suffixes, or a regular expression.",
        group="Adapter")
    first_layer: int = option(
        0, "First layer", "Layers below this one stay as they are; training is then faster.",
        group="Adapter", more=True, ge=0, le=10000)
    last_layer: int | None = option(
        None, "Last layer", "Layers above this one stay as they are; empty means the top.",
        group="Adapter", more=True, empty="top", ge=0, le=10000)
    save_dtype: SaveDtype = option(
        "fp32", "Saved as", "Number type of the adapter file; fp32 is exact, 16-bit is half the size.",
        group="Adapter", more=True)

    @field_validator("target_modules")
    @classmethod
    def _target_is_usable(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("choose at least one target layer")
        if isinstance(value, str) and value not in TARGET_PRESETS:
            problem = pattern_problem(value)
            if problem:
                raise ValueError(f"neither a preset nor a valid regular expression ({problem})")
        return value


class LowRankConfig(TargetConfig):
    """What all methods with an update B·A share."""

    rank: int = option(
        8, "Rank", "How much the adapter can learn: the inner dimension r of the update B·A. 8 is a good start.",
        group="Adapter", ge=1, le=1024)
    alpha: float = option(
        16.0, "Alpha", "How strongly the update counts: it is scaled by alpha / rank. Twice the rank is usual.",
        group="Adapter", gt=0.0, le=4096.0)
    dropout: float = option(
        0.0, "Dropout", "Share of the adapter's input dropped at random in training; helps on little data.",
        group="Adapter", ge=0.0, lt=1.0)
    bias: Literal["none", "all", "lora_only"] = option(
        "none", "Train biases", "None; all of the model; or only those of the target layers.",
        group="Adapter", more=True)
    modules_to_save: tuple[str, ...] = option(
        (), "Also train whole", "Names of modules that are trained whole and saved in the adapter, such as lm_head.",
        group="Adapter", more=True)
    start_from: str = option(
        "", "Start from adapter",
        "An adapter folder or a run: training goes on from its numbers. Empty begins anew.",
        group="Adapter", more=True)


class PatternedConfig(LowRankConfig):
    """LoRA's own options beyond the update: scaling, ranks by name, the start, new tokens, parts of fused layers."""

    rslora: bool = option(
        False, "Rank-stabilised", "Scale by alpha / √rank (rsLoRA, arXiv 2312.03732): keeps high ranks learning.",
        group="Adapter", more=True)
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva"] = option(
        "kaiming", "Start from",
        "How A and B begin. Kaiming is usual; PiSSA and OLoRA start from the weights, EVA from the data.",
        group="Adapter", more=True)
    lora_plus_ratio: float = option(
        1.0, "LoRA+ ratio", "B learns so many times faster than A (LoRA+, arXiv 2402.12354); 16 is usual, 1 is LoRA.",
        group="Adapter", more=True, ge=1.0, le=1000.0)
    rank_pattern: dict[str, int] = option(
        {}, "Ranks by name", "Other ranks for single modules: name, name ending or regular expression = rank.",
        group="Adapter", more=True)
    alpha_pattern: dict[str, float] = option(
        {}, "Alphas by name", "Other alphas for single modules: name, name ending or regular expression = alpha.",
        group="Adapter", more=True)
    new_tokens: tuple[str, ...] = option(
        (), "New tokens",
        "Tokens whose own rows of the embedding are trained; those that the model lacks are added to its vocabulary.",
        group="Adapter", more=True)
    ensure_weight_tying: bool = option(
        False, "Keep tied",
        "Where the output head shares the embedding's weights: change both together, or let them part.",
        group="Adapter", more=True)
    fused_parts: tuple[Literal["q", "k", "v"], ...] = option(
        ("q", "k", "v"), "Parts of fused layers",
        "Where query, key and value are one layer (GPT-2, Phi-3, NeoX): which are adapted. All: the layer as a whole.",
        group="Adapter", more=True)

    @property
    def takes_from_base(self) -> bool:
        """True for the starts that are a part of W; they are taken off the update, which is then of rank 2 r."""
        return self.init in ("pissa", "olora")

    @field_validator("rank_pattern")
    @classmethod
    def _ranks_are_positive(cls, value: dict[str, int]) -> dict[str, int]:
        for name, rank in value.items():
            if pattern_problem(name):
                raise ValueError(f"{name!r} is not a valid regular expression ({pattern_problem(name)})")
            if not 1 <= rank <= 1024:
                raise ValueError(f"the rank of {name!r} must be from 1 to 1024")
        return value

    @field_validator("alpha_pattern")
    @classmethod
    def _alphas_are_positive(cls, value: dict[str, float]) -> dict[str, float]:
        for name, alpha in value.items():
            if pattern_problem(name):
                raise ValueError(f"{name!r} is not a valid regular expression ({pattern_problem(name)})")
            if not 0.0 < alpha <= 4096.0:
                raise ValueError(f"the alpha of {name!r} must be above 0 and at most 4096")
        return value

    @field_validator("fused_parts")
    @classmethod
    def _some_part_is_left(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("choose at least one of q, k and v")
        return tuple(part for part in ("q", "k", "v") if part in value)


class LoraConfig(PatternedConfig):
    """Low-rank adaptation: h = W x + (alpha/rank) B A x (arXiv 2106.09685)."""

    method: Literal["lora"] = option(
        "lora", "Method", "LoRA trains two small matrices beside each chosen layer.",
        group="Adapter", choices_text={"lora": "LoRA"})


class DoraConfig(PatternedConfig):
    """Weight-decomposed LoRA: W' = m (W + s B A) / ||W + s B A|| by rows (arXiv 2402.09353)."""

    method: Literal["dora"] = option(
        "dora", "Method", "DoRA also learns the length of every row of the weights; a little slower, often better.",
        group="Adapter", choices_text={"dora": "DoRA"})


class QLoraConfig(PatternedConfig):
    """LoRA on a base that is held in 4 or 8 bits (arXiv 2305.14314)."""

    method: Literal["qlora"] = option(
        "qlora", "Method", "QLoRA holds the frozen base in 4 or 8 bits: a quarter of the memory, a little slower.",
        group="Adapter", choices_text={"qlora": "QLoRA"})
    quantisation: Literal["nf4", "int8"] = option(
        "nf4", "Base held in", "NF4 is QLoRA's own 4-bit type; int8 is larger and closer to the original.",
        group="Adapter")
    double_quantisation: bool = option(
        True, "Double quantisation", "The scales of the 4-bit blocks are quantised once more; saves 0.4 bits a weight.",
        group="Adapter", more=True)
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw"] = option(
        "adamw", "Optimizer", "The 8-bit and the paged one need less GPU memory; they need CUDA.",
        group="Adapter", more=True)


class AdaLoraConfig(LowRankConfig):
    """LoRA whose rank moves to the matrices that need it: P Λ Q with a shrinking budget (arXiv 2303.10512)."""

    method: Literal["adalora"] = option(
        "adalora", "Method", "AdaLoRA starts with more rank than asked for and keeps it where it helps most.",
        group="Adapter", choices_text={"adalora": "AdaLoRA"})
    initial_rank: int | None = option(
        None, "Initial rank", "The rank of every matrix at the start; empty means 1.5 times the rank.",
        group="Adapter", empty="1.5 times", ge=1, le=1536)
    budget_start: float = option(
        0.1, "Pruning from", "Share of the steps before the first rank is taken away.",
        group="Adapter", more=True, ge=0.0, lt=1.0)
    budget_end: float = option(
        0.7, "Pruning until", "Share of the steps after which the ranks stay as they are.",
        group="Adapter", more=True, gt=0.0, le=1.0)
    budget_every: int = option(
        10, "Prune every", "Ranks are chosen anew every so many steps.",
        group="Adapter", unit="steps", more=True, ge=1, le=100000)
    sensitivity_beta: float = option(
        0.85, "Sensitivity memory", "How slowly the importance of a rank follows new gradients (beta 1).",
        group="Adapter", more=True, gt=0.0, lt=1.0)
    uncertainty_beta: float = option(
        0.85, "Uncertainty memory", "How slowly the spread of the importance follows (beta 2).",
        group="Adapter", more=True, gt=0.0, lt=1.0)
    orthogonality: float = option(
        0.5, "Orthogonality", "Weight of the penalty that keeps P and Q orthogonal.",
        group="Adapter", more=True, ge=0.0, le=100.0)

    @property
    def first_rank(self) -> int:
        """The rank of every matrix at the start: `initial_rank`, or 1.5 times the rank, rounded up."""
        return math.ceil(1.5 * self.rank) if self.initial_rank is None else self.initial_rank

    def pruning_steps(self, total: int) -> tuple[int, int]:
        """The last step before the budget begins to fall, and the step at which it reaches its target."""
        return round(self.budget_start * total), round(self.budget_end * total)

    def has_steps_to_prune(self, total: int) -> bool:
        """True if a run of `total` steps has one that weighs the ranks before they are chosen."""
        start, end = self.pruning_steps(total)
        return max(start, 1) < end


class FullConfig(TargetConfig):
    """Full fine-tuning, the yardstick: every number of the chosen modules is trained."""

    method: Literal["full"] = option(
        "full", "Method", "Full fine-tuning trains the weights themselves: much memory, large files.",
        group="Adapter", choices_text={"full": "Full fine-tuning"})
    target_modules: str | tuple[str, ...] = option(
        "all", "Trained modules",
        "All, a preset (all-linear, attention, q-v), a list of module names or suffixes, or a regular expression.",
        group="Adapter")


class NoAdapterConfig(Section):
    """No change of the layers: a prefix or bottleneck adapters are trained alone."""

    method: Literal["none"] = option(
        "none", "Method", "Nothing is added to the layers; a prefix or bottleneck adapters learn alone.",
        group="Adapter", choices_text={"none": "None"})
    start_from: str = option(
        "", "Start from adapter",
        "An adapter folder or a run: training goes on from its numbers. Empty begins anew.",
        group="Adapter", more=True)
    save_dtype: SaveDtype = option(
        "fp32", "Saved as", "Number type of the files; fp32 is exact, 16-bit is half the size.",
        group="Adapter", more=True)


# The methods that are offered: the form, the CLI and the run file take them from here.
TargetedConfig = LoraConfig | DoraConfig | QLoraConfig | AdaLoraConfig | FullConfig  # those that change chosen layers
AdapterConfig = TargetedConfig | NoAdapterConfig
StartableConfig = LowRankConfig | NoAdapterConfig  # those with `start_from`
METHODS: dict[str, type[TargetConfig] | type[NoAdapterConfig]] = {
    str(kind.model_fields["method"].default): kind for kind in get_args(AdapterConfig)}


def _lora_by_default(value: Any) -> Any:
    """A table that names no method is LoRA."""
    return {"method": "lora", **value} if isinstance(value, dict) else value


AdapterField = Annotated[AdapterConfig, Field(discriminator="method"), BeforeValidator(_lora_by_default)]


def with_method(adapter: Section, method: str) -> dict[str, Any]:
    """The fields of another method's table: what was chosen is kept where both have it, the rest is at its default.

    A default is not a choice: the target layers of LoRA's are all linear ones, those of full fine-tuning all.
    """
    fields = METHODS[method].model_fields if method in METHODS else {}
    chosen = adapter.model_dump(mode="json", exclude_defaults=True)
    kept = {name: value for name, value in chosen.items() if name in fields}
    return {**kept, "method": method}
