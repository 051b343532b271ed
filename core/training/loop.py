"""Training, from the first event to the last, in the order in which it runs."""

import contextlib
import math
import shutil
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import torch

from core.config import RunConfig, StartableConfig
from core.control import Control
from core.data.row_store import row_lengths
from core.errors import CoreError, PeerLost
from core.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Finished,
    Note,
    Outcome,
    Planned,
    Result,
    Started,
    StepDone,
    Warned,
)
from core.files import require_writable
from core.jobs import Resume, Train
from core.lora.method import train_mode
from core.lora.start import start_from
from core.models.library import resolve
from core.models.safety import check_model_folder
from core.runs.folder import RunFolder, new_run_path
from core.training.checkpoint import Position, newest_valid, prune_checkpoints, restore_checkpoint, save_checkpoint
from core.training.contention import watched_contention
from core.training.evaluate import validation_loss
from core.training.final import compared_with_start, keep_final, require_space
from core.training.frozen_choice import choose_frozen
from core.training.optim import make_optimizer
from core.training.parallel import Ranks, joined
from core.training.schedule import total_steps
from core.training.segments import segmented_attention
from core.training.setup import Setup, prepare, started_now
from core.training.shared_prefix import worth_sharing
from core.training.step import one_step, rows_of
from core.words import plural

_MOST_SKIPPED_STEPS = 5


def train(job: Train, control: Control) -> Iterator[Event]:
    """Train a new run.

    Raises:
        CoreError: a problem that the person can mend, before the run starts or where it stopped.
    """
    with joined() as ranks, watched_contention():
        yield from _train(job, ranks.control(control), ranks)


def _train(job: Train, control: Control, ranks: Ranks) -> Iterator[Event]:
    check_model_folder(resolve(job.config.model.path))  # a wrong model is refused before a folder is made
    if not job.config.data.train:
        raise CoreError("No training data is chosen.", "Choose a file on the Data page or set data.train.")
    for file in job.config.data.train:
        if not Path(file).is_file():
            raise CoreError(f"The training file {file} does not exist.", "Choose it again.")
    if not ranks.place.first:  # it computes its share; the folder is the first one's
        yield from _run(RunFolder(job.run_dir or Path()), job.config, control, ranks, None)
        return
    run = RunFolder((job.run_dir or new_run_path()).expanduser().absolute())
    made_here = not run.path.exists()
    require_writable(run.path)
    try:
        yield from _train_in(run, job.config, control, ranks)
    except CoreError:
        if made_here and not run.has_begun():  # refused before its first step: nothing of it is worth keeping
            shutil.rmtree(run.path)
        raise


def _train_in(run: RunFolder, config: RunConfig, control: Control, ranks: Ranks) -> Iterator[Event]:
    with run.locked():
        if run.has_begun():
            raise CoreError(f"The folder {run.path} holds a run already.", "Resume it, or choose another folder.")
        run.events_path.unlink(missing_ok=True)  # of a try that failed before its first step
        run.write_config(config)
        yield from run.record(_run(run, config, control, ranks, None))


def resume(job: Resume, control: Control) -> Iterator[Event]:
    """Go on from the newest whole checkpoint, or from the beginning where none was written yet."""
    with joined() as ranks, watched_contention():
        yield from _resume(RunFolder(job.run_dir.expanduser().absolute()), ranks.control(control), ranks)


def _resume(run: RunFolder, control: Control, ranks: Ranks) -> Iterator[Event]:
    config = run.config()
    if not ranks.place.first:
        name = ranks.agreed("checkpoint", str)
        yield from _run(run, config, control, ranks, run.checkpoints / name if name else None)
        return
    with run.locked():
        run.remove_remains()
        if any(isinstance(event, Finished) and event.outcome == "finished" for event in run.read_events()):
            raise CoreError(f"The run {run.path.name} is finished already.", "Repeat it with more epochs instead.")
        checkpoint, problems = newest_valid(run)
        ranks.agreed("checkpoint", lambda: checkpoint.name if checkpoint else "")
        run.rewind(int(checkpoint.name.removeprefix("step-")) if checkpoint else 0)
        yield from run.record(_run(run, config, control, ranks, checkpoint, problems))


def _run(run: RunFolder, config: RunConfig, control: Control, ranks: Ranks, checkpoint: Path | None,
         problems: list[str] | None = None) -> Iterator[Event]:
    now, pid = started_now()
    yield Started("Resume" if checkpoint else "Train", run.path, now, pid)
    for problem in problems or []:
        yield Warned(f"A newer checkpoint was passed over: {problem}.", "Nothing was deleted.")
    torch.manual_seed(config.training.seed)
    setup = yield from prepare(config, control, ranks, resumed=checkpoint is not None)
    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.device)  # that of an earlier run in this process is not this one's
    setup, frozen = yield from choose_frozen(setup, run.path)
    if ranks.place.first:
        run.write_config(setup.config)
        require_space(run, setup)
    optimizer = make_optimizer(setup.adaptation.optimizer_groups(setup.model), setup.config, setup.device)
    position = yield from _begun(setup, optimizer, checkpoint)
    total = total_steps(setup.config.training, len(setup.train))
    yield from _planned(setup, position, total)
    started = time.perf_counter()
    steps = _steps(run, setup, optimizer, position, total, control)
    with segmented_attention(setup.model) if setup.config.training.packing == "on" else contextlib.nullcontext(), \
            frozen or contextlib.nullcontext():
        try:
            outcome = yield from (frozen.telling(steps) if frozen else steps)
        except PeerLost:
            if position.step and not run.checkpoint(position.step).exists():
                yield from _checkpoint(run, setup, optimizer, position)  # the steps that all have done are kept
            raise
    if not ranks.place.first:
        yield Result({})
        return
    yield from compared_with_start(setup, position)
    best = position.best_step if position.best_loss is not None else position.step
    final = keep_final(run, setup, best)
    yield Finished(outcome, final)
    yield Result({"run_dir": str(run.path), final.name: str(final), "outcome": outcome,
                  "steps": position.step, "adapter_step": best, "loss": position.loss,
                  "validation_loss": position.best_loss, "tokens": position.tokens,
                  "tokens_per_second": position.tokens / position.seconds if position.seconds else 0.0,
                  "train_seconds": time.perf_counter() - started})


def _begun(setup: Setup, optimizer: torch.optim.Optimizer,
           checkpoint: Path | None) -> Generator[Event, None, Position]:
    """Put the first numbers into what is trained, the same on all ranks; returns where the run stands."""
    adapter = setup.config.adapter
    if checkpoint is None and isinstance(adapter, StartableConfig) and adapter.start_from:
        yield Note(f"Training goes on from the adapter in {adapter.start_from}.")
        start_from(setup.model, setup.config, setup.origin["base_fingerprint"])
    position = restore_checkpoint(checkpoint, setup, optimizer) if checkpoint else Position()
    setup.ranks.begin_same(setup.added_tensors)
    return position


def _planned(setup: Setup, position: Position, total: int) -> Iterator[Event]:
    """What will be done, with everything that was chosen."""
    training, ranks = setup.config.training, setup.ranks
    yield Planned(total, len(setup.train), len(setup.validation), setup.trainable_parameters,
                  setup.origin["base_parameters"], setup.adapter_bytes, ranks.words(setup.device), training.dtype,
                  training.packing == "on", position.step,
                  torch.get_num_threads() if setup.device.type == "cpu" else 0)
    shared = worth_sharing(ranks.share(rows_of(setup, position.step)), setup.device) if setup.shares_prefix else 0
    if shared and position.step < total:
        yield Note(f"The rows of a step begin alike (the first step's with {plural(shared, 'token')}): "
                   "that is computed once for all of them.")


def _steps(run: RunFolder, setup: Setup, optimizer: torch.optim.Optimizer, position: Position, total: int,
           control: Control) -> Generator[Event, None, Outcome]:
    """The steps from `position` to `total`; returns the outcome."""
    training = setup.config.training
    skipped = 0
    train_mode(setup.model)
    yield from setup.adaptation.begin(setup.model, position.step, total)
    if setup.validation and position.step == 0:
        # the base, or the adapter that the run started from: what training has to beat
        yield from _evaluate(setup, position, total, control)
    while position.step < total:
        control.wait_while_paused()
        if control.stop_requested:
            break
        with setup.ranks.computing():
            done = one_step(setup, optimizer, position.step, total, control)
        if done is None:
            break
        position.step += 1
        position.tokens += done.tokens
        position.seconds += done.seconds
        position.loss = done.loss
        yield done
        yield from setup.adaptation.after_step(setup.model, position.step, total)
        finite = math.isfinite(done.loss) and math.isfinite(done.grad_norm)
        skipped = 0 if finite else skipped + 1
        if not finite:
            yield Warned(f"Step {done.step} was left out: its {_not_finite(done)} is not a finite number.",
                         "If this goes on, lower the learning rate.")
        if skipped == _MOST_SKIPPED_STEPS:
            raise CoreError(f"{skipped} steps in a row gave no finite loss; the run was stopped.",
                            "Lower the learning rate or train in fp32; the last checkpoint is good.")
        last = position.step == total
        if setup.validation and _due(position.step, training.evaluate_every, last):
            yield from _evaluate(setup, position, total, control)
        if _due(position.step, training.checkpoint_every, last) or control.take_checkpoint_request() \
                or position.best_step == position.step:
            yield from _checkpoint(run, setup, optimizer, position)
    if position.step < total and not run.checkpoint(position.step).exists():
        yield from _checkpoint(run, setup, optimizer, position)
    return _outcome(position.step < total)


def _outcome(stopped: bool) -> Outcome:
    return "stopped" if stopped else "finished"


def _due(step: int, every: int, last: bool) -> bool:
    return last or (every > 0 and step % every == 0)


def _not_finite(done: StepDone) -> str:
    return "gradient" if math.isfinite(done.loss) else "loss"


def _evaluate(setup: Setup, position: Position, total: int, control: Control) -> Iterator[Event]:
    started = time.perf_counter()
    loss = validation_loss(setup, control)
    if loss is None:
        return
    if position.step == 0:
        position.first_loss = loss
    # what was there before the first step is shown but is nothing to keep; nor is what is to lose ranks still
    counts = position.step > 0 and setup.adaptation.is_settled(position.step, total)
    best = counts and math.isfinite(loss) and (position.best_loss is None or loss < position.best_loss)
    if best:
        position.best_loss, position.best_step = loss, position.step
    tokens = int(row_lengths(setup.validation).sum())
    yield Evaluated(position.step, loss, tokens, time.perf_counter() - started, best)


def _checkpoint(run: RunFolder, setup: Setup, optimizer: torch.optim.Optimizer, position: Position) -> Iterator[Event]:
    if not setup.ranks.place.first:
        return
    started = time.perf_counter()
    folder = save_checkpoint(run, setup, optimizer, position)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield CheckpointSaved(position.step, folder, size, time.perf_counter() - started)
    prune_checkpoints(run, setup.config.training.keep_checkpoints, position.best_step)
