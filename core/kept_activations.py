"""What a forward pass leaves behind in the layers for the backward pass, from the module table alone. Plain Python.

Counted are the tensors that autograd keeps in the code that trains, each storage once; a test compares the sum with
what autograd really keeps. A number of the base's type takes 2 or 4 bytes. Norms compute in fp32, and so does an
adapter over a base in bf16, but only DoRA keeps a copy of its input in fp32 there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.adapter_shapes import BYTES
from core.beside import trained_whole
from core.config import DoraConfig, LowRankConfig, RunConfig
from core.extra_shapes import extra_activation_numbers
from core.fused_parts import chosen_parts
from core.records import ModelCard, ModuleInfo
from core.targets import ATTENTION_KINDS, rank_of

_FP32 = BYTES["fp32"]
_LINEAR = ("Linear", "Conv1D")
# what goes into these comes from attention or the bend of an MLP, and goes into no other layer
_OUTPUTS = frozenset({"o_proj", "out_proj", "dense", "c_proj", "down_proj", "dense_4h_to_h", "fc2", "w2"})
_GATES = frozenset({"gate_proj", "gate_up_proj", "w1"})
_STEPWISE_GELU = frozenset({"gpt2", "gpt_neo", "gptj"})  # a bend in single operations, four of which keep a tensor
# gates that core.training.fused_elementwise leaves alone: with factors, bounds or a bend of their own
_OTHER_GATES = frozenset({"gemma3n", "gemma3n_text", "falcon_h1", "llama4", "llama4_text", "deepseek_v4"})
_CAPPED_SCORES = frozenset({"gemma2"})  # attention whose scores are kept: two in fp32, and the mask


@dataclass(frozen=True)
class Pass:
    """What is computed at once: how many tokens, the longest row among them, and whether rows are packed."""

    tokens: int
    longest: int
    packed: bool = True

    @property
    def rows(self) -> int:
        """How many rows of the greatest length that are."""
        return max(self.tokens // max(self.longest, 1), 1)


def kept_bytes(config: RunConfig, card: ModelCard, targets: Sequence[ModuleInfo], lowest: int, dtype: str,
               once: Pass) -> int:
    """Bytes that one forward pass leaves behind, the output layer apart.

    Args:
        config: the run.
        card: the base.
        targets: the modules that are adapted, or trained themselves.
        lowest: the lowest layer in which something is trained; nothing below it is kept.
        dtype: the number type in which the base computes.
        once: the largest pass.
    """
    layers = [[module for module in card.modules if module.layer == number]
              for number in range(max(lowest, 0), card.layers)]
    adapted = {module.name for module in targets} if isinstance(config.adapter, LowRankConfig) else set()
    whole = {each.module for each in trained_whole(card.modules, targets, config.adapter)} \
        or {module.name for module in targets} - adapted
    each = BYTES[dtype]
    first_norm = last_norm = (card.hidden_size + 1) * _FP32
    from_embedding = any(module.layer < 0 and module.type == "Embedding" for module in card.modules
                         if module.name in adapted | whole)
    of_layers = []  # bytes of one token in each
    for number, layer in enumerate(layers):
        kept = sum(_norm_bytes(card, layer, module, whole, each) for module in layer) + _mlp_bytes(card, layer, each)
        if number or from_embedding or config.prefix is not None or _attention_learns(layer, adapted | whole):
            kept += _attention_bytes(card, layer, each, once)
        of_layers.append(kept + sum(_input_bytes(config, layer, adapted, whole, dtype)))
    extra = _FP32 * extra_activation_numbers(config, card.modules)
    masks = _prefix_and_mask_bytes(config, card, layers, each, once)
    if config.training.activation_checkpointing == "on":  # what enters each layer, and one layer as a whole
        inputs = each * card.hidden_size * card.layers
        return once.tokens * (last_norm + inputs + max(of_layers, default=0) + extra // max(len(layers), 1)) + masks
    # nothing is learned from what enters the lowest norm
    token = last_norm - (0 if from_embedding else first_norm) + sum(of_layers) + extra
    return once.tokens * token + len(layers) * masks


def _attention_learns(layer: Sequence[ModuleInfo], learning: set[str]) -> bool:
    """True where queries, keys or values are learned; attention keeps nothing where what it takes is frozen."""
    return any(module.name in learning and module.kind in ATTENTION_KINDS - _OUTPUTS for module in layer)


def _queries(card: ModelCard, layer: Sequence[ModuleInfo]) -> int:
    """Width of the queries of all heads; in some models it is not that of the hidden states."""
    own = (module.out_features for module in layer if module.kind in ("q_proj", "query"))
    fused = (module.qkv_rows[0] for module in layer if module.qkv_rows is not None)
    return next(own, 0) or next(fused, 0) or card.hidden_size


def _keys(card: ModelCard, layer: Sequence[ModuleInfo]) -> int:
    """Width of the keys of one token."""
    return _queries(card, layer) * (card.key_value_heads or card.attention_heads) // max(card.attention_heads, 1)


def _norm_bytes(card: ModelCard, layer: Sequence[ModuleInfo], module: ModuleInfo, whole: set[str], each: int) -> int:
    """A norm keeps its input and its scale, and where its weight is trained, what it is multiplied with."""
    shape = dict(module.tensors).get("weight", ())
    if module.type != "Other" or len(shape) != 1:
        return 0
    width = shape[0]
    if "q_norm" in module.kind:
        width = _queries(card, layer)
    elif "k_norm" in module.kind:
        width = _keys(card, layer)
    scales = _FP32 * width // shape[0]
    if any(name == "bias" for name, _ in module.tensors):  # one operation, in the base's type
        return each * width + 2 * scales
    return _FP32 * width + scales + (each * width if module.name in whole else 0)


def _masked(once: Pass) -> bool:
    """True where rows are padded: the shorter ones are kept from seeing what fills them up."""
    return not once.packed and once.rows > 1


def _attention_bytes(card: ModelCard, layer: Sequence[ModuleInfo], each: int, once: Pass) -> int:
    """Queries, keys, values, the result, and of every head the logarithm of its sum."""
    queries = _queries(card, layer)
    capped = card.model_type in _CAPPED_SCORES
    # under a mask, and where scores are made by hand, keys and values are there for every head that looks at them
    keys = queries if _masked(once) or capped else _keys(card, layer)
    heads = max(card.attention_heads, 1)
    scores = heads * once.longest * (2 * _FP32 + 1) if capped else 0
    return each * (2 * queries + 2 * keys) + _FP32 * heads + scores


def _mlp_bytes(card: ModelCard, layer: Sequence[ModuleInfo], each: int) -> int:
    """Before and after the bend, and what it is multiplied with where there is a gate; what is fused bends it again."""
    inner = card.intermediate_size or 4 * card.hidden_size
    experts = any(module.type == "Experts" for module in layer)
    kinds = {module.kind for module in layer}
    if not experts and card.model_type not in _OTHER_GATES and ({"gate_proj", "up_proj"} <= kinds
                                                                or "gate_up_proj" in kinds):
        return each * 2 * inner
    if any(module.kind in _GATES or module.type == "Experts" for module in layer):
        return each * 3 * inner
    return each * inner * (4 if card.model_type in _STEPWISE_GELU else 1)


def _input_bytes(config: RunConfig, layer: Sequence[ModuleInfo], adapted: set[str], whole: set[str],
                 dtype: str) -> Iterator[int]:
    """Of the layers that learn: their input, once for those that share it, and what is between A and B."""
    adapter = config.adapter
    dropout = isinstance(adapter, LowRankConfig) and adapter.dropout > 0
    widens = isinstance(adapter, DoraConfig) and dtype != "fp32"  # and keeps what it has widened
    seen = set()
    for module in layer:
        if module.type not in _LINEAR or module.name not in adapted | whole:
            continue
        place = (module.name.rpartition(".")[0], module.kind if module.kind in _OUTPUTS else "")
        if module.name in whole:
            yield 0 if place in seen else BYTES[dtype] * module.in_features
        elif dropout:  # the input with gaps is each layer's own, and so is the mask of the gaps
            yield 2 * _FP32 * module.in_features
        elif widens:
            yield _FP32 * module.in_features
        elif place not in seen:
            yield BYTES[dtype] * module.in_features
        seen.add(place)
        if isinstance(adapter, LowRankConfig) and module.name in adapted:
            yield _FP32 * rank_of(module.name, adapter) * max(len(chosen_parts(module, adapter)), 1)
            yield _FP32 * module.out_features if isinstance(adapter, DoraConfig) else 0  # before it is scaled


def _prefix_and_mask_bytes(config: RunConfig, card: ModelCard, layers: Sequence[Sequence[ModuleInfo]], each: int,
                           once: Pass) -> int:
    """Of one layer: the keys and values of a prefix before every row, and the mask that attention then keeps."""
    prefix = config.prefix.length if config.prefix is not None else 0
    mask = once.rows * once.longest * (once.longest + prefix) * _FP32 if prefix or _masked(once) else 0
    width = 2 * _keys(card, layers[0]) if layers else 0
    return mask + once.rows * prefix * width * each
