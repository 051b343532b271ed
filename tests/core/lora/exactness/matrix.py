"""What is compared: the methods that peft has too, and the families of models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import AdaLoraConfig as PeftAdaLora
from peft import EvaConfig, PrefixTuningConfig
from peft import LoraConfig as PeftLora

from core.config import (
    AdaLoraConfig,
    AdapterConfig,
    DoraConfig,
    LoraConfig,
    NoAdapterConfig,
    PrefixConfig,
    QLoraConfig,
    RunConfig,
)

STEPS = 40  # of a whole AdaLoRA run; ten of them are compared
ADALORA = AdaLoraConfig(rank=2, alpha=6.0, initial_rank=4, budget_every=3)


@dataclass(frozen=True)
class Family:
    """What the cells must know of one family; the names are those of its modules."""

    name: str  # in tiny_models
    title: str
    norm: str
    head: str = "lm_head"
    embedding: str = "embed_tokens"
    tied: bool = False
    has_biases: bool = False


FAMILIES = {family.name: family for family in (
    Family("llama", "Llama", "input_layernorm", tied=True),
    Family("qwen2", "Qwen2", "input_layernorm", tied=True, has_biases=True),
    Family("qwen3", "Qwen3", "input_layernorm"),
    Family("mistral", "Mistral", "input_layernorm"),
    Family("gemma3", "Gemma 3", "input_layernorm", tied=True),
    Family("phi3", "Phi-3", "input_layernorm"),
    Family("gpt2", "GPT-2", "ln_1", embedding="wte", tied=True, has_biases=True),
    Family("gpt_neox", "NeoX", "input_layernorm", embedding="embed_in", has_biases=True),
    Family("falcon", "Falcon", "ln_attn", embedding="word_embeddings", tied=True, has_biases=True),
    Family("bert", "BERT", "LayerNorm", head="decoder", embedding="word_embeddings", tied=True, has_biases=True),
)}


def _never(family: Family) -> str:
    return ""


def _nothing(family: Family) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Method:
    """One row of the matrix.

    `fields` are ours, `peft_fields` the same in peft's words. `gap` says why a family has no cell, `merge_gap` why
    it has none for merged weights.
    """

    title: str
    kind: type[Any] = LoraConfig
    fields: Callable[[Family], dict[str, Any]] = _nothing
    peft_fields: Callable[[Family], dict[str, Any]] = _nothing
    gap: Callable[[Family], str] = _never
    merge_gap: Callable[[Family], str] = _never

    def run(self, family: Family) -> RunConfig:
        """Our run file."""
        if self.kind is PrefixConfig:
            return RunConfig(adapter=NoAdapterConfig(), prefix=PrefixConfig(length=5, rate=1.0, **self.fields(family)))
        return RunConfig(adapter=self.adapter(family))

    def adapter(self, family: Family) -> AdapterConfig:
        """Our table [adapter]."""
        if self.kind is AdaLoraConfig:
            return ADALORA
        return self.kind(**{"rank": 4, "alpha": 6.0, **self.fields(family)})

    def peft_config(self, family: Family, targets: list[str]) -> Any:
        """The same for peft, on the modules called `targets`."""
        task = {"task_type": None if family.name == "bert" else "CAUSAL_LM"}
        if self.kind is PrefixConfig:
            return PrefixTuningConfig(num_virtual_tokens=5, **task, **self.peft_fields(family))
        if self.kind is AdaLoraConfig:
            start, end = ADALORA.pruning_steps(STEPS)
            return PeftAdaLora(init_r=ADALORA.first_rank, target_r=ADALORA.rank, tinit=start, tfinal=STEPS - end,
                               deltaT=ADALORA.budget_every, beta1=ADALORA.sensitivity_beta,
                               beta2=ADALORA.uncertainty_beta, orth_reg_weight=ADALORA.orthogonality,
                               total_step=STEPS, lora_alpha=int(ADALORA.alpha), target_modules=targets, **task)
        return PeftLora(**{"r": 4, "lora_alpha": 6, "target_modules": targets, **task, **self.peft_fields(family)})

    @property
    def init(self) -> str:
        """The start of A and B that both are given."""
        return str(self.peft_fields(FAMILIES["llama"]).get("init_lora_weights", ""))


def _same(**fields: Any) -> Callable[[Family], dict[str, Any]]:
    return lambda family: fields


def _tied(family: Family) -> str:
    return "peft merges into the tensor that embedding and head share" if family.tied else ""


def _no_biases(family: Family) -> str:
    if family.name == "bert":
        return "the bias of its head is one tensor with two names, which we train apart"
    return "" if family.has_biases else "has no biases"


def _no_prefix(family: Family) -> str:
    if family.name == "falcon":
        return "refused by us, as it keeps the keys of all query heads"
    return "peft's prefix needs a model that continues text" if family.name == "bert" else ""


def _no_quantised(family: Family) -> str:
    if family.name == "falcon":
        return "refused by us, as transformers quantises none of its layers"
    return "our quantised bases are models that continue text" if family.name == "bert" else ""


METHODS = {
    "lora": Method("LoRA"),
    "rslora": Method("rsLoRA", fields=_same(rslora=True), peft_fields=_same(use_rslora=True)),
    "patterns": Method(
        "LoRA, ranks and alphas by name",
        fields=_same(rank_pattern={r".*\.1\..*": 2}, alpha_pattern={r".*\.0\..*": 5.0}),
        peft_fields=_same(rank_pattern={r".*\.1\..*": 2}, alpha_pattern={r".*\.0\..*": 5.0})),
    "bias": Method("LoRA with all biases", fields=_same(bias="all"), peft_fields=_same(bias="all"), gap=_no_biases),
    "bias_lora_only": Method("LoRA with its layers' biases", fields=_same(bias="lora_only"),
                             peft_fields=_same(bias="lora_only"),
                             gap=lambda family: "" if family.has_biases else "has no biases"),
    "modules_to_save": Method(
        "LoRA, head and norms whole", fields=lambda family: {"modules_to_save": (family.head, family.norm)},
        peft_fields=lambda family: {"modules_to_save": [family.head, family.norm]}),
    "embedding": Method("LoRA on the embedding", fields=lambda family: {"target_modules": ("q-v", family.embedding)},
                        merge_gap=_tied),
    "lora_plus": Method("LoRA+", fields=_same(lora_plus_ratio=4.0)),
    "dora": Method("DoRA", DoraConfig, peft_fields=_same(use_dora=True)),
    "pissa": Method("PiSSA", fields=_same(init="pissa"), peft_fields=_same(init_lora_weights="pissa")),
    "olora": Method("OLoRA", fields=_same(init="olora"), peft_fields=_same(init_lora_weights="olora"),
                    gap=lambda family: "peft's start has the wrong shape on Conv1D" if family.name == "gpt2" else ""),
    "eva": Method("EVA", fields=_same(init="eva"),
                  peft_fields=_same(init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))),
    "adalora": Method("AdaLoRA", AdaLoraConfig),
    "prefix": Method("Prefix", PrefixConfig, gap=_no_prefix, merge_gap=lambda family: "a prefix is not in the weights"),
    "nf4": Method("QLoRA, NF4", QLoraConfig, _same(quantisation="nf4"), gap=_no_quantised),
    "int8": Method("QLoRA, int8", QLoraConfig, _same(quantisation="int8"), gap=_no_quantised),
}
CELLS = [(method, family) for method in METHODS for family in FAMILIES if not METHODS[method].gap(FAMILIES[family])]
