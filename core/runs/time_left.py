"""How long a run still takes, from the events so far: one reckoning for the window and the terminal."""

import math

from core import events
from core.runs.running_mean import RunningMean


class TimeLeft:
    """Takes in the events of a run from its plan on."""

    def __init__(self) -> None:
        self._begin(0, 0)

    def _begin(self, total: int, first: int) -> None:
        self._total, self._first, self._step = total, first, first
        self._a_step = RunningMean()  # seconds
        self._between = 0.0  # seconds of evaluations and checkpoints between the steps
        self._at_first = 0.0  # of the evaluation before the first step, which comes once

    def add(self, event: events.Event) -> None:
        """Take in one event; those that tell no time are passed over."""
        match event:
            case events.Planned():
                self._begin(event.total_steps, event.first_step)
            case events.StepDone():
                self._step = event.step
                self._a_step.add(event.seconds)
            case events.Evaluated() if event.step <= self._first:
                self._at_first = event.seconds
            case events.Evaluated() | events.CheckpointSaved():
                self._between += event.seconds

    def seconds(self) -> float:
        """By the time of the last steps and the share of evaluations and checkpoints; NaN while not known.

        Before the first of these between the steps, one evaluation is reckoned for the end.
        """
        if not self._total:
            return math.nan
        left, counted = max(0, self._total - self._step), max(1, self._step - self._first)
        at_end = 0.0 if self._between else self._at_first
        return left * (self._a_step.value + self._between / counted) + at_end
