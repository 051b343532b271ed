"""What other programs make of an adapter folder, from facts about it alone.

The rules are those of peft 0.21 (`LoraConfig`, `load_peft_weights`), vLLM (`lora/peft_helper.py`,
`lora/lora_weights.py`: one factor alpha / r, or alpha / √r, for all modules) and llama.cpp
(`convert_lora_to_gguf.py`: the factor is alpha / the tensor's own rank). A scale is computed as each loader
computes it and compared with the true one: that alone decides between exactly and wrongly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.records import LoaderVerdict

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank can be set to
VLLM_DEFAULT_RANK = 16
_SAME = 1e-6  # relative; scales that differ by less are the same number


@dataclass(frozen=True)
class AdapterFacts:
    """What decides how an adapter is read.

    kind: `peft_type`. ranks, scales: by module, the scales being the true factors of B A. rank, alpha: of the
    config. dora, rslora, bias: its flags. saved: modules saved whole. new_tokens: rows of single tokens, for which the
    vocabulary must have token_rows rows. embeddings: modules that are embeddings. convolutions: modules that are
    convolutions. experts: the updates of all experts of a layer are in one tensor.
    """

    kind: str
    ranks: Mapping[str, int]
    scales: Mapping[str, float]
    rank: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    bias: str = "none"
    saved: tuple[str, ...] = ()
    new_tokens: bool = False
    embeddings: tuple[str, ...] = ()
    convolutions: tuple[str, ...] = field(default=())
    experts: bool = False
    token_rows: int = 0


def facts_of_config(config: Mapping[str, Any], ranks: Mapping[str, int], scales: Mapping[str, float],
                    embeddings: tuple[str, ...] = (), convolutions: tuple[str, ...] = ()) -> AdapterFacts:
    """The facts of adapter_config.json and of the tensors beside it."""
    return AdapterFacts(
        kind=str(config.get("peft_type") or "LORA").upper(), ranks=ranks, scales=scales,
        rank=int(config.get("r") or config.get("init_r") or 0), alpha=float(config.get("lora_alpha") or 0),
        rslora=bool(config.get("use_rslora")), dora=bool(config.get("use_dora")),
        bias=str(config.get("bias") or "none"), saved=tuple(config.get("modules_to_save") or ()),
        new_tokens=bool(config.get("trainable_token_indices")), token_rows=rows_for_tokens(config),
        embeddings=embeddings, convolutions=convolutions,
        experts=any(not str(name).endswith(".weight") for name in config.get("target_parameters") or ()))


def rows_for_tokens(config: Mapping[str, Any]) -> int:
    """How many rows an embedding must have for the tokens whose rows the adapter gives; 0 where it gives none."""
    given = config.get("trainable_token_indices") or []
    lists = given.values() if isinstance(given, dict) else [given]
    return max((index + 1 for indices in lists for index in indices), default=0)


def verdicts(facts: AdapterFacts) -> list[LoaderVerdict]:
    """A line for each loader."""
    return [_peft(facts), _vllm(facts), _llama_cpp(facts)]


def _peft(facts: AdapterFacts) -> LoaderVerdict:
    why = "It knows every field of this file."
    if facts.token_rows:
        why = (f"It makes no room for new tokens: call base.resize_token_embeddings({facts.token_rows}) first where "
               "the base has fewer rows.")
    return LoaderVerdict("peft", "exactly", why)


def _vllm(facts: AdapterFacts) -> LoaderVerdict:
    refusal = _vllm_refusal(facts)
    if refusal:
        return LoaderVerdict("vLLM", "refuses", refusal)
    factor = facts.alpha / (math.sqrt(facts.rank) if facts.rslora else facts.rank) if facts.rank else 0.0
    wrong = _wrongly_scaled(facts, dict.fromkeys(facts.scales, factor))
    if wrong:
        return LoaderVerdict("vLLM", "wrongly", f"It knows one scale for all modules, no patterns: {wrong}.")
    needed = next((rank for rank in VLLM_RANKS if rank >= _largest(facts)), 0)
    why = (f"Start it with --max-lora-rank {needed}." if needed > VLLM_DEFAULT_RANK
           else "It reads plain LoRA up to rank 16 as it is.")
    return LoaderVerdict("vLLM", "exactly", why)


def _vllm_refusal(facts: AdapterFacts) -> str:
    reasons = (
        (facts.kind != "LORA", f"It reads LoRA only, not {_KIND_WORDS.get(facts.kind, facts.kind)}."),
        (facts.dora, "It does not support DoRA."),
        (facts.saved or facts.new_tokens, "It does not read modules or tokens that were trained whole."),
        (facts.bias != "none", "It does not read trained biases."),
        (facts.convolutions, f"It does not adapt convolutions such as {', '.join(facts.convolutions[:1])}."),
        (facts.embeddings, f"It does not adapt embeddings such as {', '.join(facts.embeddings[:1])}."),
        (facts.experts, "Not every version reads the joint updates of experts; try yours before relying on it."),
        (_largest(facts) > VLLM_RANKS[-1], f"Its highest rank is {VLLM_RANKS[-1]}."),
    )
    return next((reason for refused, reason in reasons if refused), "")


def _llama_cpp(facts: AdapterFacts) -> LoaderVerdict:
    extras = (
        (facts.kind != "LORA", f"the matrices of {_KIND_WORDS.get(facts.kind, facts.kind)}"),
        (facts.dora, "the row lengths of DoRA"),
        (facts.saved, "modules that were trained whole"),
        (facts.new_tokens, "tokens that were trained alone"),
        (facts.bias != "none", "trained biases"),
        (facts.experts, "the joint updates of experts"),
        (facts.convolutions, f"convolutions such as {', '.join(facts.convolutions[:1])}"),
    )
    extra = next((name for held, name in extras if held), "")
    if extra:
        return LoaderVerdict("llama.cpp", "refuses", f"Its converter stops at {extra}.")
    wrong = _wrongly_scaled(facts, {name: facts.alpha / rank for name, rank in facts.ranks.items() if rank})
    if wrong:
        return LoaderVerdict("llama.cpp", "wrongly",
                             f"It knows neither rank-stabilised scaling nor patterns: {wrong}.")
    return LoaderVerdict("llama.cpp", "exactly", "After convert_lora_to_gguf.py with --base.")


_KIND_WORDS = {"ADALORA": "AdaLoRA"}


def _largest(facts: AdapterFacts) -> int:
    return max([facts.rank, *facts.ranks.values()])


def _wrongly_scaled(facts: AdapterFacts, taken: Mapping[str, float]) -> str:
    """Which module a loader would scale wrongly, in words; "" where none."""
    for name, factor in taken.items():
        true = facts.scales[name]
        if facts.ranks[name] and abs(factor - true) > _SAME * max(abs(true), abs(factor)):
            return f"{_short(name)} would count {factor / true:.2g} times" if true else f"{_short(name)} should be off"
    return ""


def extra_verdicts(words: str, *, has_own: bool, is_prefix: bool) -> list[LoaderVerdict]:
    """What loaders make of a folder with a prefix or bottleneck adapters (`words` says which).

    Args:
        has_own: an adapter of layers lies in the folder itself.
        is_prefix: a prefix lies there, and nothing else is anywhere.
    """
    if is_prefix:
        why = "It reads LoRA only, not a prefix."
        return [LoaderVerdict("peft", "exactly", "As prefix tuning."), LoaderVerdict("vLLM", "refuses", why),
                LoaderVerdict("llama.cpp", "refuses", why)]
    if has_own:
        why = f"It reads the adapter of the layers and does not see {words} in the sub-folders."
        return [LoaderVerdict(name, "wrongly", why) for name in ("peft", "vLLM", "llama.cpp")]
    return [LoaderVerdict(name, "refuses", f"It finds no adapter: it does not know {words}.")
            for name in ("peft", "vLLM", "llama.cpp")]


def _short(name: str) -> str:
    """`q_proj of layer 3` for model.layers.3.self_attn.q_proj."""
    layer = next((part for part in name.split(".") if part.isdigit()), "")
    kind = name.rpartition(".")[2]
    return f"{kind} of layer {layer}" if layer else kind
