"""The sample job: score the starter on orders it has not seen, train it, score it again, prove the export."""

import gc
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from core.config import RunConfig, load_config, with_overrides
from core.control import Control
from core.data.formats import to_conversation
from core.data.readers import read_rows
from core.data.template import render_prompt
from core.errors import Cancelled, CoreError, DataError
from core.events import Event, Progress, ReceiptReady, Result, StepDone, to_plain
from core.export.export import export
from core.jobs import Export, Train
from core.models.library import resolve
from core.models.load import load_model, load_tokenizer, resolve_device, resolve_dtype
from core.models.starter import ensure_starter
from core.paths import SAMPLE
from core.records import Message
from core.runs.folder import RunFolder, new_run_path
from core.scoring import HeldOutRow, exact_match, is_exact
from core.training.batch_generate import answer_batch
from core.training.decode import stop_tokens
from core.training.generate import end_of_turn
from core.training.loop import train
from core.training.tuned_base import load_tuned

EXAMPLES = 5
_TOKENS_OVER = 8  # an answer longer than the longest right one by so many tokens is wrong anyway


def demo(control: Control, run_dir: Path | None = None, *, sample: Path = SAMPLE, overrides: Sequence[str] = (),
         heldout_limit: int | None = None) -> Iterator[Event]:
    """Score, train and score again on the sample task, then export the adapter with its receipt.

    Args:
        control: polled by every part; a stop keeps what the run has and raises Cancelled.
        run_dir: the run's folder; None makes a new one.
        sample: folder with run.toml and heldout.jsonl.
        overrides: `section.name=value` changes to the sample's run file.
        heldout_limit: score only so many rows; None is all.

    Yields:
        The events of its parts; the last is Result(exact_match_before, exact_match_after, train_seconds,
        tokens_per_second, peak_rss_bytes, run_dir, receipt, examples).
    """
    config = with_overrides(load_config(sample / "run.toml"), list(overrides))
    rows = read_held_out(sample / "heldout.jsonl")[:heldout_limit]
    if config.model.path == "starter":
        yield from _all_but_result(ensure_starter(control))
    before = yield from answer_rows(config, None, rows, "Scoring before training", control)
    training = yield from _train(config, run_dir or new_run_path("demo"), control)
    after = yield from answer_rows(config, RunFolder(training.run_dir).final, rows, "Scoring after training", control)
    receipt = yield from _export(training.run_dir, control)
    yield Result({
        "exact_match_before": exact_match(before, rows),
        "exact_match_after": exact_match(after, rows),
        "train_seconds": training.train_seconds,
        "tokens_per_second": training.tokens / training.step_seconds if training.step_seconds else 0.0,
        "peak_rss_bytes": peak_rss_bytes(),
        "run_dir": str(training.run_dir),
        "receipt": receipt,
        "examples": _examples(rows, before, after),
    })


def read_held_out(file: Path) -> list[HeldOutRow]:
    """Conversations whose last message is the right answer.

    Raises:
        DataError: a row that ends otherwise, or no rows.
    """
    rows = []
    for raw in read_rows(file):
        messages = [(message.role, message.content) for message in to_conversation(raw).messages]
        if len(messages) < 2 or messages[-1][0] != "assistant":
            raise DataError(f"{file}, line {raw.line}: a held-out row must end with the right answer.")
        rows.append(HeldOutRow(tuple(messages[:-1]), messages[-1][1]))
    if not rows:
        raise DataError(f"There are no held-out rows in {file}.")
    return rows


def answer_rows(config: RunConfig, adapter: Path | None, rows: Sequence[HeldOutRow], stage: str,
                control: Control) -> Generator[Event, None, list[str]]:
    """The answers of the base model, or of base and adapter, to held-out rows; the model is freed again."""
    yield Progress(stage, 0, len(rows), "rows")
    path = resolve(config.model.path)
    tokenizer = load_tokenizer(path)
    device = resolve_device(config.training.device)
    dtype = resolve_dtype(config.training.dtype, device)
    model = load_model(path, device, dtype) if adapter is None else load_tuned(adapter, path, device, dtype)
    prompts = [render_prompt([Message(*message) for message in row.messages], tokenizer) for row in rows]
    longest = max(len(tokenizer(row.expected)["input_ids"]) for row in rows)
    answers = [""] * len(rows)
    listed = getattr(model.generation_config, "eos_token_id", None)
    stream = answer_batch(model, prompts, stop_tokens(listed, tokenizer, end_of_turn(tokenizer)),
                          longest + _TOKENS_OVER, control)
    for done, (index, tokens) in enumerate(stream, 1):
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        answers[index] = text.strip()
        yield Progress(stage, done, len(rows), "rows")
    del model
    gc.collect()
    return answers


@dataclass
class _Training:
    """What the run told while it went."""

    run_dir: Path
    train_seconds: float = 0.0
    tokens: int = 0
    step_seconds: float = 0.0
    outcome: str = ""


def _train(config: RunConfig, run_dir: Path, control: Control) -> Generator[Event, None, _Training]:
    training = _Training(run_dir)
    for event in train(Train(config, run_dir), control):
        if isinstance(event, Result):
            training.train_seconds = event.values["train_seconds"]
            training.outcome = event.values["outcome"]
            continue
        if isinstance(event, StepDone):
            training.tokens += event.tokens
            training.step_seconds += event.seconds
        yield event
    if training.outcome != "finished":
        raise Cancelled(f"Stopped. What was learned so far is kept in {run_dir}.")
    return training


def _export(run_dir: Path, control: Control) -> Generator[Event, None, dict[str, Any]]:
    """Write the adapter, or the fine-tuned model, beside the run and return the receipt's values."""
    receipt: dict[str, Any] | None = None
    target = "merged" if RunFolder(run_dir).model.is_dir() else "adapter"
    for event in export(Export(run_dir, target, run_dir / "export"), control):
        if isinstance(event, ReceiptReady):
            receipt = to_plain(event)["receipt"]
        if not isinstance(event, Result):
            yield event
    if receipt is None:
        raise CoreError("The export ended without a receipt.")
    return receipt


def _all_but_result(stream: Iterator[Event]) -> Iterator[Event]:
    return (event for event in stream if not isinstance(event, Result))


def _examples(rows: Sequence[HeldOutRow], before: Sequence[str], after: Sequence[str]) -> list[dict[str, Any]]:
    """Rows spread evenly over the file: not chosen by how well they went."""
    places = [number * len(rows) // min(EXAMPLES, len(rows)) for number in range(min(EXAMPLES, len(rows)))]
    return [{"prompt": rows[place].question, "expected": rows[place].expected, "before": before[place],
             "after": after[place], "right": is_exact(after[place], rows[place].expected)} for place in places]


def peak_rss_bytes() -> int:
    """The largest memory this process ever held, as the system counts it."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # noqa: PLC0415 - POSIX only

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
