"""Asking a model from the terminal: one question, or a conversation."""

import argparse
import signal
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.adapter_folder import is_adapter_folder, named_base
from core.control import Control
from core.engine.job_table import JobRunner
from core.errors import AdapterError, CoreError, ModelError
from core.events import Event, GenerationDone, Note, Result, TokenGenerated
from core.jobs import AdapterUse, Generate
from core.models.library import resolve
from core.runs.folder import RunFolder

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class AnswerSource:
    """Who answers: a base model, alone, with an adapter, or with several."""

    model: str
    adapter: Path | None = None
    others: tuple[AdapterUse, ...] = ()

    @property
    def is_tuned(self) -> bool:
        """True where an adapter takes part."""
        return self.adapter is not None or bool(self.others)


def answer_source(options: argparse.Namespace) -> AnswerSource:
    """What `source` names: a run folder, an adapter folder, or a model.

    Raises:
        CoreError: the run has no adapter yet, or no such checkpoint.
    """
    found = _named_source(options)
    return replace(found, others=tuple(options.adapters))


def _named_source(options: argparse.Namespace) -> AnswerSource:
    path = Path(options.source)
    if (path / "run.toml").is_file():
        run = RunFolder(path)
        tuned = _adapter_of(run, options.checkpoint)
        if tuned == run.model and not options.compare:  # a whole model needs no base beside it
            return AnswerSource(str(run.model.resolve()))
        return AnswerSource(run.config().model.path, tuned)
    if options.checkpoint or options.compare:
        raise CoreError(f"{options.source} is not a run folder, so it has nothing to compare and no checkpoints.",
                        "Name a run folder.")
    if is_adapter_folder(path):
        return AnswerSource(_base_of_adapter(path), path)
    return AnswerSource(str(path.resolve()) if path.exists() else options.source)


def _adapter_of(run: RunFolder, checkpoint: str) -> Path:
    if checkpoint:
        found = run.checkpoints / checkpoint
        if found not in run.checkpoint_folders():
            names = ", ".join(folder.name for folder in run.checkpoint_folders()) or "none"
            raise CoreError(f"The run {run.path.name} has no checkpoint {checkpoint}.", f"It has: {names}.")
        return found
    if run.model.is_dir() or is_adapter_folder(run.adapter):
        return run.final
    if run.checkpoint_folders():
        return run.checkpoint_folders()[-1]
    raise CoreError(f"The run {run.path.name} has no adapter yet.", "Resume it, or ask its base model instead.")


def _base_of_adapter(path: Path) -> str:
    base = named_base(path)
    if not base:
        raise AdapterError(f"The adapter in {path} does not say which base model it belongs to.")
    try:
        resolve(base)
    except ModelError:  # an export names its base, which may lie anywhere; the adapter knows it by its fingerprint
        from core.export.bases import trained_base  # noqa: PLC0415 - needs torch
        from core.lora.adapter_file import read_adapter  # noqa: PLC0415

        found = trained_base(read_adapter(path))
        if found is None:
            raise AdapterError(f"The base model {base!r} of this adapter was not found on this machine.",
                               f"If it is here, name it: `lora-workbench chat BASE --adapter {path}`.") from None
        return str(found)
    return base


def converse(source: AnswerSource, options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Answer `options.prompt`, or questions that are typed until the input ends."""
    runner = JobRunner()  # keeps the model loaded between the questions
    system: Turns = (("system", options.system),) if options.system else ()
    if options.prompt is not None:
        values = yield from _answer(runner, source, options, (*system, ("user", options.prompt)), control)
        yield Result(values)
        return
    yield Note("Type a question and press Enter. An empty line ends the conversation.")
    turns = system
    while not control.stop_requested and (question := _read_question()):
        turns = (*turns, ("user", question))
        values = yield from _answer(runner, source, options, turns, control)
        turns = (*turns, ("assistant", values["answer"]))
    yield Result({"turns": len(turns)})


def _answer(runner: JobRunner, source: AnswerSource, options: argparse.Namespace, turns: Turns,
            control: Control) -> Generator[Event, None, dict[str, Any]]:
    """One answer (before it, with --compare, the base model's); returns what is known of it."""
    values: dict[str, Any] = {}
    if options.compare:
        values["base_answer"], _ = yield from _generate(runner, AnswerSource(source.model), options, turns, control)
    values["answer"], done = yield from _generate(runner, source, options, turns, control)
    if done is not None:
        values |= {"tokens": done.tokens, "seconds": done.seconds, "stopped": done.stopped}
    return values


def _generate(runner: JobRunner, source: AnswerSource, options: argparse.Namespace, turns: Turns,
              control: Control) -> Generator[Event, None, tuple[str, GenerationDone | None]]:
    job = Generate(source.model, source.adapter, {"tuned" if source.is_tuned else "base": turns}, options.temperature,
                   options.top_p, options.max_new_tokens, options.seed, options.device, options.dtype, source.others)
    pieces: list[str] = []
    done = None
    for event in runner(job, control):
        if isinstance(event, TokenGenerated):
            pieces.append(event.text)
        elif isinstance(event, GenerationDone):
            done = event
        if not isinstance(event, Result):
            yield event
    return "".join(pieces), done


def _read_question() -> str:
    """One typed line; empty at the end of the input or at Ctrl-C."""
    while_answering = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip()
    except KeyboardInterrupt:
        return ""
    finally:
        signal.signal(signal.SIGINT, while_answering)
