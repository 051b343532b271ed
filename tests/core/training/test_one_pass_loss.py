"""The loss in one pass over the vocabulary is that of fp64, and of the way in chunks."""

import pytest
import torch
from torch import Tensor

from core.training import one_pass_loss
from core.training.loss import chunked_cross_entropy

STATES, WIDTH = 37, 24


def random_case(vocabulary: int, with_bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """States, weights, bias, labels; logits of a usual spread."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, WIDTH, generator=generator) for rows in (STATES, vocabulary))
    bias = torch.randn(vocabulary, generator=generator) if with_bias else None
    return hidden, weight, bias, torch.randint(vocabulary, (STATES,), generator=generator)


def in_fp64(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
            softcap: float | None) -> tuple[Tensor, Tensor]:
    """Loss and gradient as torch computes them."""
    states = hidden.double().requires_grad_(True)
    logits = states @ weight.double().T
    logits = logits if bias is None else logits + bias.double()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    loss.backward()
    assert states.grad is not None
    return loss.detach(), states.grad


def error(found: Tensor | None, expected: Tensor) -> float:
    """Relative, of the whole tensor."""
    assert found is not None
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("vocabulary", [20, 768, 769, 2000])
def test_loss_and_gradient(vocabulary: int, with_bias: bool, softcap: float | None,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, labels = random_case(vocabulary, with_bias)
    loss, gradient = in_fp64(hidden, weight, bias, labels, softcap)
    states = hidden.clone().requires_grad_(True)
    monkeypatch.setattr("core.training.loss.F.linear", None)  # of the way in chunks
    found = chunked_cross_entropy(states, weight, bias, labels, softcap)
    found.backward()
    assert error(found.detach(), loss) < 1e-6 and error(states.grad, gradient) < 1e-6
    alone, none = one_pass_loss.one_pass_cross_entropy(hidden, weight, bias, labels, softcap, learns=False)
    assert torch.equal(alone, found.detach()) and none is None
    monkeypatch.undo()
    monkeypatch.setattr(one_pass_loss, "fits", lambda *_: False)
    torch.testing.assert_close(chunked_cross_entropy(hidden, weight, bias, labels, softcap), found.detach())


def test_logits_that_rise_from_block_to_block() -> None:
    """What is subtracted must follow them, or the exponentials would leave fp32."""
    hidden, weight, _, labels = random_case(4000, False)
    bias = torch.linspace(-500, 500, 4000)
    loss, gradient = in_fp64(hidden, weight, bias, labels, None)
    found, states = one_pass_loss.one_pass_cross_entropy(hidden, weight, bias, labels, None, learns=True)
    # an exponent of 500 is known to 500 / 2^24 = 3e-5 in fp32
    assert error(found, loss) < 1e-6 and error(states, gradient) < 3e-5


def test_gradient_of_what_is_known_almost_surely() -> None:
    """The probability of every other token together is 1e-6; its gradient is as exact as any."""
    hidden, weight, _, labels = random_case(2000, False)
    labels[:] = 5
    bias = torch.zeros(2000)
    bias[5] = 45.0
    loss, gradient = in_fp64(hidden, weight, bias, labels, None)
    assert 0 < float(loss) / STATES < 1e-5
    found, states = one_pass_loss.one_pass_cross_entropy(hidden, weight, bias, labels, None, learns=True)
    assert error(found, loss) < 1e-5 and error(states, gradient) < 1e-5


def test_a_trained_output_layer_goes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, labels = random_case(300, True)
    monkeypatch.setattr(one_pass_loss, "one_pass_cross_entropy", None)
    trained = weight.clone().requires_grad_(True)
    chunked_cross_entropy(hidden, trained, bias, labels).backward()
    assert trained.grad is not None and float(trained.grad.norm()) > 0
