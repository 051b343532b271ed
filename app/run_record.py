"""What a run has told so far, gathered from its events: figures, log, outcome. No Qt here."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from app import figures
from app.rank_history import RankHistory
from app.series import RunSeries, memory_bytes
from core import events, words
from core.runs.time_left import TimeLeft

RecordState = Literal["starting", "running", "paused", "finished", "stopped", "failed", "interrupted"]
_LATE_SECONDS = 60.0


@dataclass(frozen=True)
class LogLine:
    """One line of the log. `time` is a clock time while the run is watched, else time since its start."""

    time: str
    text: str
    kind: Literal["note", "warning", "error"] = "note"


class RunRecord:
    """A run as the Train page shows it.

    Args:
        run_dir: its folder; None until it has told.
        live: events arrive as they happen; else they are read from the log of a past run.
        smoothing: weight of the moving averages.
    """

    def __init__(self, run_dir: Path | None, *, live: bool, smoothing: float) -> None:
        self.run_dir = run_dir
        self.live = live
        self.series = RunSeries(smoothing)
        self.ranks = RankHistory()
        self.state: RecordState = "starting"
        self.stage: events.Progress | None = None
        self.plan: events.Planned | None = None
        self.step: events.StepDone | None = None
        self.evaluated: events.Evaluated | None = None
        self.best_validation = math.nan
        self.failure: events.Failed | None = None
        self.result_path: Path | None = None
        self.checkpoints = 0
        self.seconds = 0.0  # of work, as the events count it
        self.log: list[LogLine] = []
        self._left = TimeLeft()

    @classmethod
    def from_log(cls, run_dir: Path, log: Iterable[events.Event], state: str, smoothing: float) -> "RunRecord":
        """Read a past run. `state` is what its folder says, for a run that broke off without a word."""
        record = cls(run_dir, live=False, smoothing=smoothing)
        for event in log:
            record.add(event)
        if record.state in ("starting", "running") and state in ("interrupted", "running"):
            record.state = "interrupted" if state == "interrupted" else "running"
        return record

    @classmethod
    def until(cls, run_dir: Path, log: Iterable[events.Event], plan: events.Planned, smoothing: float) -> "RunRecord":
        """The part of a log before `plan`, with which the run goes on."""
        record = cls(run_dir, live=False, smoothing=smoothing)
        for event in log:
            if event == plan:
                break
            record.add(event)
        return record

    @classmethod
    def unreadable(cls, run_dir: Path, failure: events.Failed, smoothing: float) -> "RunRecord":
        """A past run whose log can not be read: it says so, and nothing else."""
        record = cls(run_dir, live=False, smoothing=smoothing)
        record.add(failure)
        return record

    def warn(self, text: str) -> None:
        """Write a warning that is not the run's own into the log."""
        self._write(text, "warning")

    def resume(self, plan: events.Planned) -> None:
        """What comes now comes live."""
        self.live = True
        self.add(plan)

    def break_off(self) -> None:
        """No more events come, and the run did not say why."""
        self.state, self.stage = ("interrupted" if self.step else "stopped"), None
        self._write(self.sentence(), "warning" if self.step else "note")

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.run_dir.name if self.run_dir else ""

    @property
    def active(self) -> bool:
        """True until the run has ended in one way or another."""
        return self.state in ("starting", "running", "paused")

    @property
    def can_resume(self) -> bool:
        """True where something was trained: from the newest checkpoint, or before the first one from the beginning."""
        return self.state in ("failed", "interrupted", "stopped") and self.step is not None

    @property
    def total_steps(self) -> int:
        """Planned steps; 0 while not known."""
        return self.plan.total_steps if self.plan else 0

    @property
    def total_epochs(self) -> float:
        """Epochs at the last step, reckoned from the present step; NaN while not known."""
        if not self.step or not self.plan or not self.step.step:
            return math.nan
        return self.step.epoch * self.plan.total_steps / self.step.step

    def seconds_left(self) -> float:
        """Until the end of a run that goes on; NaN while not known."""
        return self._left.seconds() if self.active else math.nan

    def pause(self, paused: bool) -> None:
        """The person paused the run or let it go on."""
        if self.active and paused != (self.state == "paused"):
            self.state = "paused" if paused else "running"
            self._write("Paused." if paused else "Going on.")

    def add(self, event: events.Event) -> None:
        """Take in one event of the run."""
        self.series.add(event)
        self._left.add(event)
        match event:
            case events.Started():
                self._started(event)
            case events.Planned():
                self._planned(event)
            case events.Progress():
                self.stage = event
            case events.StepDone():
                self._step_done(event)
            case events.Evaluated():
                self._evaluated(event)
            case events.RanksChosen():
                self.ranks.add(event)
            case events.CheckpointSaved():
                self._checkpoint_saved(event)
            case events.Note():
                self._write(event.message)
            case events.Warned():
                self._write(f"{event.message} {event.hint}".strip(), "warning")
            case events.Finished():
                self._finished(event)
            case events.Failed():
                self._failed(event)
            case _:
                pass

    def _started(self, event: events.Started) -> None:
        going_on = self.step is not None
        self.run_dir = event.run_dir or self.run_dir
        self.state, self.failure, self.stage = "starting", None, None
        # a run that was attached to late tells its past in a burst: its lines have no clock time
        self.live = self.live and (not event.time or abs(time.time() - event.time) < _LATE_SECONDS)
        self._write("The run goes on." if going_on else "The run begins.")

    def _planned(self, plan: events.Planned) -> None:
        self.plan, self.stage = plan, None
        self.state = "running"
        self._write(f"{words.plural(plan.train_rows, 'row')} to learn from, {plan.validation_rows:,} held out; "
                    f"{words.plural(plan.total_steps, 'step')} on {plan.way}.")
        self._write(f"{words.count(plan.trainable_parameters)} of {words.count(plan.total_parameters)} parameters "
                    f"are trained; the adapter takes {words.size(plan.adapter_bytes)}.")

    def _step_done(self, step: events.StepDone) -> None:
        self.step, self.stage = step, None
        if self.state == "starting":
            self.state = "running"
        self.seconds += step.seconds
        if not math.isfinite(step.loss):
            self._write(f"Step {step.step:,}: the loss is not a number ({figures.loss(step.loss)}).", "warning")

    def _evaluated(self, event: events.Evaluated) -> None:
        self.evaluated = event
        self.seconds += event.seconds
        best = ", the best so far" if event.best else ""
        if event.best:  # the loss before the first step is none
            self.best_validation = event.loss
        self._write(f"Step {event.step:,}: validation loss {figures.loss(event.loss)}{best} "
                    f"({figures.span(event.seconds)}).")

    def _checkpoint_saved(self, event: events.CheckpointSaved) -> None:
        self.checkpoints += 1
        self.seconds += event.seconds
        self._write(f"Step {event.step:,}: checkpoint saved ({words.size(event.bytes)}).")

    def _finished(self, event: events.Finished) -> None:
        self.state, self.stage = event.outcome, None
        self.result_path = event.path
        self._write(self.sentence())

    def _failed(self, event: events.Failed) -> None:
        self.stage = None
        if event.cancelled:
            self.state = "stopped"
            self._write("Stopped before the first step.")
            return
        self.state, self.failure = "failed", event
        self._write(f"{event.message} {event.hint}".strip(), "error")

    def _write(self, text: str, kind: Literal["note", "warning", "error"] = "note") -> None:
        when = time.strftime("%H:%M:%S") if self.live else figures.clock(self.seconds)
        self.log.append(LogLine(when, text, kind))

    def sentence(self) -> str:
        """What became of the run, or what it does now, in one or two plain sentences."""
        if self.state == "finished":
            sentence = f"Finished in {figures.span(self.seconds)}. {self.what_changed()}"
        elif self.state == "stopped":
            sentence = (f"Stopped at step {self.step.step:,} of {self.total_steps:,}. {self.what_changed()}"
                      if self.step else "Stopped before the first step.")
        elif self.state == "failed" and self.failure:
            sentence = self.failure.message
        elif self.state == "interrupted":
            at = f" at step {self.step.step:,}" if self.step else ""
            saved = "It can go on from its last checkpoint." if self.checkpoints else "No checkpoint was saved."
            sentence = f"The run broke off{at}. {saved}"
        elif self.state == "paused":
            sentence = "Paused."
        else:
            sentence = "Training…" if self.state == "running" and self.step else self._stage_words()
        return sentence.strip()

    def _stage_words(self) -> str:
        if self.stage is None:
            return "Getting ready…"
        if not self.stage.total:
            return f"{self.stage.stage}…"
        return f"{self.stage.stage}: {figures.amount_done(self.stage.done, self.stage.total, self.stage.unit)}"

    def what_changed(self) -> str:
        """`Validation loss fell from 2.1 to 0.08.` or the same of the loss; empty with fewer than two points."""
        validation = self.series.validation_loss.values
        if len(validation) >= 2 and math.isfinite(self.best_validation):
            return _change("Validation loss", float(validation[0]), self.best_validation)
        averages = self.series.loss.smoothed
        averages = averages[np.isfinite(averages)]
        return _change("Loss", float(averages[0]), float(averages[-1])) if len(averages) >= 2 else ""

    def speed(self) -> float:
        """Tokens per second, averaged over the last steps; NaN while not known."""
        smoothed = self.series.tokens_per_second.smoothed
        return float(smoothed[-1]) if len(smoothed) else math.nan

    def memory(self) -> float:
        """Bytes in use at the newest step; NaN while not known."""
        return float(memory_bytes(self.step)) if self.step else math.nan


def _change(name: str, first: float, last: float) -> str:
    if not math.isfinite(first):
        return f"{name} reached {_short(last)}."
    if _short(first) == _short(last):
        return f"{name} stayed at {_short(last)}."
    return f"{name} {'fell' if last < first else 'rose'} from {_short(first)} to {_short(last)}."


def _short(value: float) -> str:
    """Two significant digits for a sentence: 2.1, 0.08, 12."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:,.0f}"
