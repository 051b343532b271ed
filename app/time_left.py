"""How long a run still takes, from the events so far; the page and the line below it tell the same."""

import math

from core import events

_KEPT = 0.9  # weight of the older steps in the time of one step


class TimeLeft:
    """Takes in the events of a run from its plan on."""

    def __init__(self) -> None:
        self._begin(0, 0)

    def _begin(self, total: int, first: int) -> None:
        self._total, self._first, self._step = total, first, first
        self._sum = self._weight = 0.0  # of the moving average of a step's seconds, without the bias of its beginning
        self._between = 0.0  # seconds of evaluations and checkpoints between the steps
        self._at_first = 0.0  # of the evaluation before the first step, which comes once

    def add(self, event: events.Event) -> None:
        """Take in one event; those that tell no time are passed over."""
        match event:
            case events.Planned():
                self._begin(event.total_steps, event.first_step)
            case events.StepDone():
                self._step = event.step
                self._sum = _KEPT * self._sum + (1 - _KEPT) * event.seconds
                self._weight = _KEPT * self._weight + 1 - _KEPT
            case events.Evaluated() if event.step <= self._first:
                self._at_first = event.seconds
            case events.Evaluated() | events.CheckpointSaved():
                self._between += event.seconds

    def seconds(self) -> float:
        """By the time of the last steps and the share of evaluations and checkpoints; NaN while not known.

        Before the first of these between the steps, one evaluation is reckoned for the end.
        """
        if not self._weight or not self._total:
            return math.nan
        left, counted = max(0, self._total - self._step), max(1, self._step - self._first)
        at_end = 0.0 if self._between else self._at_first
        return left * (self._sum / self._weight + self._between / counted) + at_end
