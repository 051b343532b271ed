"""What a step of DoRA costs beside one of LoRA, ours and peft's, on the starter model.

    python bench/dora.py [--pairs 7] [--tokens 512] [--rank 8] [--model starter]

A step is a forward, a backward and AdamW over all linear layers in fp32 on the CPU. LoRA and DoRA take turns,
so that a busy machine slows both; what counts is the processor time of each pair, as a ratio. The median
of ours must not be above 1.35.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from core.config import DoraConfig, LoraConfig, RunConfig
from core.data.batching import pack
from core.data.template import EncodedRow
from core.lora.adaptation import Adaptation
from core.lora.method import Material, train_mode
from core.models.library import resolve
from core.models.load import load_model
from core.training.loss import chunked_loss
from core.training.segments import segmented_attention

LIMIT = 1.35
ROW_TOKENS = 128
Step = Callable[[], None]


def main() -> int:
    """Measure and print; exit code 1 where ours is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--model", default="starter")
    options = parser.parse_args()
    base = resolve(options.model)
    ours = ratios([our_step(base, kind, options.rank, options.tokens) for kind in (LoraConfig, DoraConfig)],
                  options.pairs)
    peft = ratios([peft_step(base, dora, options.rank, options.tokens) for dora in (False, True)], options.pairs)
    for name, found in (("ours", ours), ("peft", peft)):
        values = ", ".join(f"{ratio:.2f}" for ratio, _, _ in found)
        lora, dora = (statistics.median(pair[number] for pair in found) for number in (1, 2))
        print(f"{name}: DoRA takes {median(found):.2f} times as long as LoRA (pairs: {values}; "
              f"medians {lora:.2f} s and {dora:.2f} s of processor time a step)")
    print(f"{options.tokens} tokens a step, rank {options.rank}, all linear layers, fp32, "
          f"{torch.get_num_threads()} threads; limit {LIMIT}")
    return int(median(ours) > LIMIT)


def median(found: list[tuple[float, float, float]]) -> float:
    """The median ratio."""
    return statistics.median(ratio for ratio, _, _ in found)


def ratios(steps: list[Step], pairs: int) -> list[tuple[float, float, float]]:
    """(ratio, seconds of the first, seconds of the second) of every pair; the first pair warms up."""
    found = []
    for number in range(pairs + 1):
        seconds = [0.0, 0.0]
        for turn in (0, 1) if number % 2 else (1, 0):
            started = time.process_time()
            steps[turn]()
            seconds[turn] = time.process_time() - started
        found.append((seconds[1] / seconds[0], *seconds))
    return found[1:]


def rows(tokens: int) -> list[EncodedRow]:
    """Random rows, all tokens supervised but the first of each."""
    generator = np.random.default_rng(0)
    count = max(1, tokens // ROW_TOKENS)
    length = tokens // count
    supervised = np.arange(length) > 0
    return [EncodedRow(number, generator.integers(10, 2000, length, dtype=np.int32), supervised, False, length)
            for number in range(count)]


def our_step(base: Path, kind: type[LoraConfig] | type[DoraConfig], rank: int, tokens: int) -> Step:
    """One step as the training loop takes it."""
    model = load_model(base, torch.device("cpu"), torch.float32)
    adaptation = Adaptation(RunConfig(adapter=kind(rank=rank)))
    adaptation.install(model, Material([], 0))
    optimizer = torch.optim.AdamW(adaptation.optimizer_groups(model), lr=1e-4)
    batch = pack(rows(tokens))[0]
    train_mode(model)

    def step() -> None:
        optimizer.zero_grad()
        with segmented_attention(model):
            chunked_loss(model, batch).backward()
        optimizer.step()

    return step


def peft_step(base: Path, dora: bool, rank: int, tokens: int) -> Step:
    """The same rows through peft's layers and the model's own loss."""
    config = PeftConfig(r=rank, lora_alpha=16, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).train()
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=1e-4)
    ids = torch.stack([torch.from_numpy(row.input_ids).long() for row in rows(tokens)])

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    raise SystemExit(main())
