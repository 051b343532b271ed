"""The peer: peft with the Trainer of transformers, on the same rows, in three recipes.

- "ordinary": the Trainer as it comes. Rows are padded to the longest of their batch, logits are made everywhere, the
  batches are exactly those of our run.
- "best": rows of like length stand together, as `train_sampling_strategy="group_by_length"` has them over the whole
  file, and logits are made only where a label is (`logits_to_keep`). Of that epoch, batches at even distances are
  taken: its first ones alone would be the longest. With it goes an allocator that keeps what it was given (BEST).
  "best, awake" is the same with threads that wait for one another as ours do (`core.openmp`).
"""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from bench.speed.machine import StepClock, matrix_speed
from bench.speed.ours import rows_in_steps, rows_of, speed_of
from core.config import LowRankConfig, RunConfig, parse_config
from core.data.template import EncodedRow
from core.demo import peak_rss_bytes
from core.models.library import resolve
from core.models.load import load_tokenizer
from core.training.contention import watched_contention

IGNORED = -100
TARGETS = {"q-v": ["q_proj", "v_proj"], "all-linear": "all-linear"}
Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


def train_once(config: dict[str, Any], recipe: str, warm: int = 0, start: str = "") -> dict[str, Any]:
    """Train; the steps after the first `warm` ones count for the speed.

    Args:
        config: a RunConfig as plain values; it says rows, batch, adapter and rate.
        recipe: "ordinary", "best" or "best, awake".
        warm: steps to leave out.
        start: a folder into which the untrained adapter is written, so that another side can begin with the same.
    """
    run = parse_config(config)
    gflops = [matrix_speed()]
    base = resolve(run.model.path)
    tokenizer = load_tokenizer(base)
    tokenizer.padding_side = "right"
    steps = range(run.training.max_steps)
    best = recipe != "ordinary"
    batches = (grouped if best else rows_in_steps)(run, rows_of(run), steps)
    model = adapted(base, run)
    if start:
        model.save_pretrained(start)
    plain = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = LossKeeper(
            model=model, args=arguments(run, folder), callbacks=[clock],
            data_collator=labels_only(plain) if best else plain,
            train_dataset=[example(row) for batch in batches for row in batch])
        # without the watch, threads that wait awake are slow beside a busy program
        with watched_contention() if recipe == "best, awake" else contextlib.nullcontext():
            trainer.train()
    peak = peak_rss_bytes()
    gflops.append(matrix_speed())
    told = [{"loss": loss, "tokens": sum(map(len, batch)), **lap}
            for loss, batch, lap in zip(trainer.losses, batches, clock.laps, strict=True)]
    return {"steps": told, "peak_rss_bytes": peak, "matrix_gflops": max(gflops), **speed_of(told[warm:])}


def adapted(base: Path, run: RunConfig) -> PeftModel:
    """The model in fp32 with peft's layers on it."""
    adapter = run.adapter
    assert isinstance(adapter, LowRankConfig)
    assert isinstance(adapter.target_modules, str)
    config = PeftConfig(r=adapter.rank, lora_alpha=int(adapter.alpha), lora_dropout=adapter.dropout,
                        target_modules=TARGETS[adapter.target_modules], task_type="CAUSAL_LM")
    torch.manual_seed(run.training.seed)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)


def arguments(run: RunConfig, folder: str) -> TrainingArguments:
    """The Trainer's own defaults but for what the case says; the rows come in order already."""
    training = run.training
    return TrainingArguments(
        output_dir=folder, per_device_train_batch_size=training.batch_size, max_steps=training.max_steps,
        learning_rate=training.learning_rate, lr_scheduler_type="constant", weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm, seed=training.seed, train_sampling_strategy="sequential",
        use_cpu=True, logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True)


def grouped(run: RunConfig, rows: Sequence[EncodedRow], steps: range) -> list[list[EncodedRow]]:
    """Batches at even distances of an epoch that groups by length."""
    size = run.training.batch_size
    order = get_length_grouped_indices([len(row) for row in rows], size,
                                       generator=torch.Generator().manual_seed(run.training.seed))
    batches = [order[first:first + size] for first in range(0, len(order) - size + 1, size)]
    return [[rows[index] for index in batches[(2 * step + 1) * len(batches) // (2 * len(steps))]] for step in steps]


def example(row: EncodedRow) -> dict[str, list[int]]:
    """A row as the Trainer takes it, with our own mask of what is learned."""
    labels = [int(token) if learned else IGNORED for token, learned in zip(row.input_ids, row.supervised, strict=True)]
    return {"input_ids": row.input_ids.tolist(), "labels": labels}


def labels_only(plain: Collator) -> Collator:
    """The same batch, told that logits are needed only where the next token is a label."""

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(plain(features))
        following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # (B, T)
        kept = following != IGNORED
        return batch | {"logits_to_keep": kept, "shift_labels": following[kept]}

    return collate


class LossKeeper(Trainer):
    """The Trainer, which keeps the loss of every step."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.losses: list[float] = []

    def training_step(self, *given: Any, **named: Any) -> Tensor:
        """A step of the Trainer."""
        loss = super().training_step(*given, **named)
        self.losses.append(float(loss))
        return loss


class Clock(TrainerCallback):
    """Times every step of the Trainer."""

    def __init__(self) -> None:
        self.laps: list[dict[str, float]] = []
        self._clock = StepClock()

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        """The first step begins."""
        self._clock.restart()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        """A step with its change of the weights is done."""
        self.laps.append(self._clock.lap())
