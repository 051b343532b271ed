"""Our side: a run as the engine does it, measured by its own events."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.draining import finish
from bench.speed.flops import PLACES, Linear, Shape, training_flops
from bench.speed.machine import StepClock, matrix_speed
from core.config import LowRankConfig, RunConfig, parse_config
from core.control import Control
from core.data.batching import step_rows, used_tokens
from core.data.prepare import prepare_rows
from core.data.scan import scan_dataset
from core.data.template import EncodedRow
from core.demo import peak_rss_bytes
from core.estimate import estimate
from core.events import DataScanned, Note, Planned, StepDone
from core.jobs import ScanData, Train
from core.models.inspect import read_card
from core.models.library import resolve
from core.models.load import load_tokenizer
from core.records import ModelCard
from core.targets import rank_of, select_targets
from core.training.loop import train
from core.training.shared_prefix import shared_length


def train_once(config: dict[str, Any], warm: int = 0, count: bool = False) -> dict[str, Any]:
    """Train; the steps after the first `warm` ones count for the speed.

    Seconds are those between the events of two steps, so whatever a run does in between is in them.

    Args:
        config: a RunConfig as plain values.
        warm: steps to leave out.
        count: also tell the floating-point operations of the counted steps, and the memory that was estimated.
    """
    run = parse_config(config)
    gflops = [matrix_speed()]
    steps: list[dict[str, Any]] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        clock = StepClock()
        for event in train(Train(run, Path(folder) / "run"), Control()):
            if isinstance(event, Planned):
                clock.restart()
            elif isinstance(event, Note):
                notes.append(event.message)
            elif isinstance(event, StepDone):
                steps.append({"loss": event.loss, "tokens": event.tokens, "epoch": event.epoch, **clock.lap()})
    peak = peak_rss_bytes()
    gflops.append(matrix_speed())
    answer = {"steps": steps, "peak_rss_bytes": peak, "matrix_gflops": max(gflops), "notes": notes,
              **speed_of(steps[warm:])}
    if count:
        answer["flops"] = counted_flops(run, range(warm, len(steps)), sum(step["tokens"] for step in steps[warm:]))
        answer["estimated_bytes"] = estimated_bytes(run)
    return answer


def speed_of(steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Tokens without padding, seconds, and their quotient; also by processor time, which is disturbed less."""
    tokens, seconds, busy = (sum(step[name] for step in steps) for name in ("tokens", "seconds", "cpu_seconds"))
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds,
            "tokens_per_cpu_second": tokens / busy}


def rows_of(config: RunConfig) -> Sequence[EncodedRow]:
    """The rows that the run trains on, in the order of the file."""
    tokenizer = load_tokenizer(resolve(config.model.path))
    return finish(prepare_rows(config.data, tokenizer, config.training.seed, Control())).train


def rows_in_steps(config: RunConfig, rows: Sequence[EncodedRow], steps: range) -> list[list[EncodedRow]]:
    """The rows of each of `steps` (from 0), as our run takes them."""
    training = config.training
    return [[rows[index] for index in step_rows(step, len(rows), training.batch_size, training.seed)] for step in steps]


def counted_flops(config: RunConfig, steps: range, tokens: int) -> int:
    """Operations of the steps; `tokens` is what the run told of them, which must be what is counted."""
    chosen = rows_in_steps(config, rows_of(config), steps)
    assert sum(len(row) for rows in chosen for row in rows) == tokens, "the run took other rows than these"
    shape = shape_of(read_card(resolve(config.model.path)), config)
    shares = config.training.shared_prefix != "off"
    return sum(training_flops(shape, [(used_tokens(row), int(row.supervised.sum())) for row in rows],
                              shared_length(rows) if shares else 0) for rows in chosen)


def shape_of(card: ModelCard, config: RunConfig) -> Shape:
    """What the count needs of a model of the Llama kind and the adapter of the run."""
    assert isinstance(config.adapter, LowRankConfig)
    chosen = {module.name for module in select_targets(card.modules, config.adapter)}
    linears = tuple(
        Linear(module.kind, module.layer, module.in_features, module.out_features,
               rank_of(module.name, config.adapter) if module.name in chosen else 0)
        for module in card.modules if module.kind in PLACES)
    return Shape(linears, card.attention_heads, card.hidden_size // card.attention_heads, card.hidden_size,
                 card.vocabulary)


def estimated_bytes(config: RunConfig) -> int:
    """The peak of memory that is shown before Start, when the data was scanned."""
    scan = next(event for event in scan_dataset(ScanData(config), Control()) if isinstance(event, DataScanned))
    return estimate(config, read_card(resolve(config.model.path)), scan).memory_bytes
