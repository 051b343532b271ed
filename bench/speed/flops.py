"""How many floating-point operations LoRA training must do for the rows it sees. Plain Python.

A product of (n, i) and (i, o) is 2·n·i·o operations. Counted are, for every token of a row (n of them)
from which something supervised is predicted later on:

- each frozen weight of the layers, (in, out): 2·in·out forward, and 2·in·out backward (the gradient of its input)
  only where a trained weight lies before it, so that a gradient has to pass; never a gradient of the weight itself;
- LoRA beside it, rank r: 2·r·(in + out) forward; backward 2·r·out for the gradient behind B, 2·r·out for that of B,
  2·r·in for that of A, and 2·r·in for that of the input where it has to pass;
- attention, causal: a row has n·(n + 1)/2 pairs, and a product over them is 2·pairs·heads·head width. Forward there
  are two (scores, values). Backward there are up to four: the gradients of values, weights, queries and keys, each
  where something trained lies behind it.

A beginning that all rows of a step have in common must be computed only once.

The output layer, (hidden, vocabulary), is 2·hidden·vocabulary forward and as much backward for every *supervised*
token only. Not counted: what is computed a second time, elementwise work, norms, the softmax, the optimizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# where a linear layer stands within its layer: a gradient passes from a later place to an earlier one
PLACES = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "down_proj": 3}


@dataclass(frozen=True)
class Linear:
    """One linear layer of the model; `rank` 0 where nothing is trained beside it."""

    kind: str
    layer: int
    inputs: int
    outputs: int
    rank: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """Its place in the order of computing."""
        return self.layer, PLACES[self.kind]


@dataclass(frozen=True)
class Shape:
    """What of a model and its adapter the count depends on."""

    linears: tuple[Linear, ...]
    heads: int
    head_width: int
    hidden: int
    vocabulary: int

    @property
    def lowest(self) -> tuple[int, int]:
        """The place of the first trained layer."""
        return min(linear.place for linear in self.linears if linear.rank)


def training_flops(shape: Shape, rows: Sequence[tuple[int, int]], shared: int = 0) -> int:
    """Operations of one step, forward and backward.

    Args:
        shape: of the model and its adapter.
        rows: (tokens up to the last that predicts, supervised tokens) of each.
        shared: tokens that all of them begin with, before the first that predicts something.
    """
    again = len(rows) - 1
    tokens = sum(length for length, _ in rows) - again * shared
    supervised = sum(count for _, count in rows)
    pairs = sum(length * (length + 1) // 2 for length, _ in rows) - again * (shared * (shared + 1) // 2)
    return (tokens * sum(_linear(linear, shape.lowest) for linear in shape.linears)
            + 2 * pairs * shape.heads * shape.head_width * _attention_products(shape)
            + 4 * supervised * shape.hidden * shape.vocabulary)


def _linear(linear: Linear, lowest: tuple[int, int]) -> int:
    """Operations for one token."""
    passes = linear.place > lowest
    weight = 2 * linear.inputs * linear.outputs * (2 if passes else 1)
    side = 2 * linear.rank * linear.inputs * (3 if passes else 2)  # forward, gradient of A, of the input
    return weight + side + 2 * linear.rank * linear.outputs * 3  # forward, behind B, of B


def _attention_products(shape: Shape) -> int:
    """How many products over all pairs the layers need together."""
    layers = {linear.layer for linear in shape.linears}
    return sum(2 + _attention_backward(shape, layer) for layer in layers)


def _attention_backward(shape: Shape, layer: int) -> int:
    first = (layer, 0)
    if shape.lowest < first:
        return 4
    if shape.lowest > first:
        return 0
    trained = {linear.kind for linear in shape.linears if linear.layer == layer and linear.rank}
    scores = len(trained & {"q_proj", "k_proj"})
    return ("v_proj" in trained) + scores + (scores > 0)
