"""Only the top third of the layers, three epochs: what the cache of the layers below saves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.speed.cases import CASES, config_of
from bench.speed.plan import Plan, scratch
from bench.speed.report import Figure, Found

EPOCHS = 3
ROWS, QUICK_ROWS = 96, 16
LIMIT = 1e-5


def prefix(plan: Plan) -> Found:
    """The same rows with the cache, without it, and with all layers, in turns."""
    main = CASES[0]
    layers = json.loads((Path(plan.model) / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    rows = QUICK_ROWS if plan.quick else ROWS
    turns: list[dict[str, dict[str, Any]]] = []
    with scratch() as folder:
        data = folder / "rows.json"
        taken = json.loads(plan.files[main.data].read_text(encoding="utf-8"))[:rows]
        data.write_text(json.dumps(taken), encoding="utf-8")
        config = config_of(main, plan.model, data, 0).model_dump(mode="json")
        config["training"]["epochs"] = EPOCHS
        top = {**config, "adapter": {**config["adapter"], "first_layer": layers - layers // 3}}
        without = {**top, "training": {**top["training"], "frozen_cache": "off"}}
        for _ in range(plan.turns):
            turns.append({side: plan.ask("ours:train_once", config=used)
                          for side, used in (("cached", top), ("uncached", without), ("all layers", config))})
    gains = tuple(slowest_later_epoch(turn["cached"]["steps"]) / turn["all layers"]["tokens_per_second"]
                  for turn in turns)
    plain = tuple(turn["uncached"]["tokens_per_second"] / turn["all layers"]["tokens_per_second"] for turn in turns)
    apart = tuple(max(abs(mine["loss"] - other["loss"]) for mine, other
                      in zip(turn["cached"]["steps"], turn["uncached"]["steps"], strict=True)) for turn in turns)
    return Found((
        Figure("top third of the layers, from the second epoch on, against all layers", gains, 2.0),
        Figure("the same without the cache", plain),
        Figure("loss with the cache against without, largest difference", apart, LIMIT, "most", "{:.1e}"),
    ), {"prefix": turns})


def slowest_later_epoch(steps: Sequence[dict[str, Any]]) -> float:
    """Tokens/s of the slowest epoch after the first; a step belongs to the epoch that it ends in."""
    speeds = []
    for epoch in range(2, EPOCHS + 1):
        chosen = [step for step in steps if epoch - 1 + 1e-9 < step["epoch"] <= epoch + 1e-9]
        speeds.append(sum(step["tokens"] for step in chosen) / sum(step["seconds"] for step in chosen))
    return min(speeds)
