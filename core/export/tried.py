"""How far a merge into the original weights is from what QLoRA's run answered in Chat."""

from pathlib import Path

import torch
from torch import Tensor

from core.control import Control
from core.export.probe import WholeRunner, make_probes
from core.models.load import load_model, load_tokenizer
from core.models.quantise import Quantisation
from core.training.tuned_base import load_tuned


def tried_words(base: Path, adapter: Path, merged: Path, quantisation: Quantisation, control: Control) -> str:
    """A sentence with the measured difference; both models are run whole, one after the other.

    Args:
        base: the original base.
        adapter: trained over it while it was quantised.
        merged: the merged model's folder.
        quantisation: how it was held.
        control: a stop raises Cancelled.
    """
    device = torch.device("cpu")
    prompts = [probe.ids for probe in make_probes(load_tokenizer(base))]
    tried = WholeRunner(load_tuned(adapter, base, device, quantisation.computed_in)).logits(prompts, control)
    found = WholeRunner(load_model(merged, device, torch.float32)).logits(prompts, control)
    largest = max(float((left - right).abs().max()) for left, right in zip(tried, found, strict=True))
    same = _same_choices(tried, found)
    return (f"The adapter was trained over the base in {quantisation.words}; over the original weights it answers "
            f"other than in Chat: logits of the test questions differ by up to {largest:.2g}, and the first choice is "
            f"the same at {same:.0%} of their positions.")


def _same_choices(left: list[Tensor], right: list[Tensor]) -> float:
    pairs = [(one.argmax(-1) == other.argmax(-1)).double() for one, other in zip(left, right, strict=True)]
    return float(torch.cat(pairs).mean())
