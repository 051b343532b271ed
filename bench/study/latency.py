"""The article's claim on inference: base, base + adapter and merged model, one token at a time, in turns.

    python -m bench.study.latency --out FOLDER [--rounds 12] [--tokens 24] [--model starter]
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from core import files
from core.config import LoraConfig
from core.lora.inject import inject, lora_layers, remove
from core.models.library import resolve
from core.models.load import load_model

NAME = "latency"
RANK = 16


def main() -> int:
    """Measure and write one result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--model", default="starter")
    options = parser.parse_args()
    models = three_models(options.model)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(options.rounds):
        for name, model in models.items():
            times[name].append(milliseconds_a_token(model, options.tokens))
    result = {"cell": NAME, "rounds": options.rounds, "rank": RANK, "threads": torch.get_num_threads(),
              "milliseconds_a_token": {name: statistics.median(found[1:] or found) for name, found in times.items()},
              "range": {name: [min(found), max(found)] for name, found in times.items()}}
    files.write_text(options.out / f"{NAME}.json", json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["milliseconds_a_token"]))
    return 0


def three_models(model: str) -> dict[str, nn.Module]:
    """The same weights alone, with an adapter on all linear layers beside them, and with it merged."""
    path, device = resolve(model), torch.device("cpu")
    base, adapted, merged = (load_model(path, device, torch.float32) for _ in range(3))
    generator = torch.Generator().manual_seed(0)
    for target in (adapted, merged):
        inject(target, LoraConfig(rank=RANK, alpha=2 * RANK), 0)
    with torch.no_grad():
        for name, layer in lora_layers(adapted).items():
            layer.lora_b.normal_(std=1e-3, generator=generator)
            twin = lora_layers(merged)[name]
            twin.lora_b.copy_(layer.lora_b)
            twin.weight.add_(twin.delta())
    remove(merged)
    return {"base": base.eval(), "base + adapter": adapted.eval(), "merged": merged.eval()}


@torch.no_grad()
def milliseconds_a_token(model: nn.Module, tokens: int) -> float:
    """Greedy answers to a fixed prompt with a key-value cache; the prompt itself is not counted."""
    ids = torch.arange(100, 132)[None]
    output = model(input_ids=ids, use_cache=True)
    started = time.perf_counter()
    for _ in range(tokens):
        last = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=last, past_key_values=output.past_key_values, use_cache=True)
    return 1000 * (time.perf_counter() - started) / tokens


if __name__ == "__main__":
    sys.exit(main())
