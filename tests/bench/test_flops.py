"""The count of operations against counts by hand."""

import pytest

from bench.speed.flops import PLACES, Linear, Shape, training_flops

D, KV, F, V, R = 8, 4, 12, 100, 2
SIZES = {"q_proj": (D, D), "k_proj": (D, KV), "v_proj": (D, KV), "o_proj": (D, D),
         "gate_proj": (D, F), "up_proj": (D, F), "down_proj": (F, D)}
WEIGHTS = 2 * D * D + 2 * D * KV + 3 * D * F  # of one layer
INTO = D * D + 2 * D * KV  # of them those of q, k and v
PAIRS = 2 * D * (3 * 4 // 2)  # operations of one product of attention over a row of three tokens


def shape(trained: dict[int, set[str]], layers: int = 2) -> Shape:
    linears = tuple(Linear(kind, layer, *SIZES[kind], R if kind in trained.get(layer, ()) else 0)
                    for layer in range(layers) for kind in PLACES)
    return Shape(linears, heads=2, head_width=D // 2, hidden=D, vocabulary=V)


def lora(kind: str, passes: bool) -> int:
    inputs, outputs = SIZES[kind]
    return 2 * R * (inputs * (3 if passes else 2) + outputs * 3)


def test_a_common_beginning_is_counted_once() -> None:
    model, rows = shape({0: {"q_proj"}, 1: {"q_proj"}}), [(30, 10), (40, 20), (50, 5)]
    saved = training_flops(model, rows) - training_flops(model, rows, shared=12)
    assert saved == 2 * training_flops(model, [(12, 0)])


def test_q_and_v_of_every_layer() -> None:
    found = training_flops(shape({0: {"q_proj", "v_proj"}, 1: {"q_proj", "v_proj"}}), [(3, 1)])
    weights = 2 * WEIGHTS * 2 + 2 * WEIGHTS + 2 * (WEIGHTS - INTO)  # no gradient passes through q, k, v of layer 0
    side = sum(lora(kind, passes) for kind in ("q_proj", "v_proj") for passes in (False, True))
    attention = 2 * 2 + 4 + 3  # forward, all four of layer 1, all but the keys' of layer 0
    assert found == 3 * (weights + side) + attention * PAIRS + 4 * D * V


def test_nothing_passes_below_the_lowest_trained_layer() -> None:
    found = training_flops(shape({1: {"down_proj"}}), [(3, 2)])
    assert found == 3 * (2 * 2 * WEIGHTS + lora("down_proj", False)) + 4 * PAIRS + 2 * 4 * D * V


def test_all_linear_layers() -> None:
    found = training_flops(shape({0: set(PLACES)}, layers=1), [(3, 3)])
    side = sum(lora(kind, kind[0] not in "qkv") for kind in PLACES)
    assert found == 3 * (2 * WEIGHTS + 2 * (WEIGHTS - INTO) + side) + 6 * PAIRS + 3 * 4 * D * V


@pytest.mark.parametrize("length", [1, 5, 64])
def test_rows_are_counted_apart(length: int) -> None:
    model = shape({0: {"q_proj"}})
    assert training_flops(model, [(length, 1)] * 4) == 4 * training_flops(model, [(length, 1)])
    if length > 1:
        assert training_flops(model, [(length, 1)]) > length * training_flops(model, [(1, 0)]) + 4 * D * V
