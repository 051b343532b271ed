"""Growing series of numbers over the steps of a run: what the plots draw. No Qt here.

A slot that receives events only appends to these; the plots read them when their timer says so.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from core import events

Floats = NDArray[np.float64]

DEFAULT_SMOOTHING = 0.9
BYTES_PER_GB = 1e9
_FIRST_CAPACITY = 256


class Buffer:
    """A one-dimensional float64 array that grows by doubling."""

    def __init__(self) -> None:
        self._data = np.empty(_FIRST_CAPACITY)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, value: float) -> None:
        """Add one number at the end."""
        if self._length == len(self._data):
            larger = np.empty(2 * len(self._data))
            larger[:self._length] = self._data
            self._data = larger
        self._data[self._length] = value
        self._length += 1

    def replace(self, values: Floats) -> None:
        """Hold exactly `values` from now on."""
        if len(values) > len(self._data):
            self._data = np.empty(max(_FIRST_CAPACITY, 2 * len(values)))
        self._data[:len(values)] = values
        self._length = len(values)

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self._length = min(self._length, length)

    @property
    def array(self) -> Floats:
        """The numbers so far, as a view of shape (length,)."""
        return self._data[:self._length]


def smooth(values: Floats, weight: float) -> Floats:
    """Debiased exponential moving average: y_k = (1-w) sum_j w^(k-j) x_j / (1 - w^k).

    The division by 1 - w^k is Adam's correction for a start at zero (arXiv 1412.6980, section 3).
    Numbers that are not finite are passed over: the average stays as it was. Before the first
    finite number it is NaN.

    Args:
        values: shape (n,).
        weight: w, from 0 (no smoothing) up to but without 1.

    Returns:
        Shape (n,).
    """
    finite = np.isfinite(values)
    count = np.cumsum(finite)
    averages = _moving_average(values[finite], weight)
    corrected = averages / (1.0 - weight ** np.arange(1, len(averages) + 1))
    result = np.full(len(values), np.nan)
    result[count > 0] = corrected[count[count > 0] - 1]
    return result


def _moving_average(values: Floats, weight: float) -> Floats:
    """y_k = w y_(k-1) + (1-w) x_k with y_0 = 0, in blocks short enough that w^-n stays small."""
    if weight <= 0.0 or not len(values):
        return values.copy()
    block = max(1, min(4096, int(-16.0 / math.log(weight))))
    padded = np.zeros((-(-len(values) // block), block))
    padded.ravel()[:len(values)] = values
    decay = weight ** np.arange(1, block + 1)  # w^1 … w^n
    inside = np.cumsum(padded / decay, axis=1) * decay * (1.0 - weight)
    carried = np.zeros(len(padded))
    for row in range(1, len(padded)):
        carried[row] = inside[row - 1, -1] + decay[-1] * carried[row - 1]
    return (inside + carried[:, None] * decay).ravel()[:len(values)]


class Series:
    """One quantity over the steps of a run, with its moving average, both growing live.

    Steps rise strictly. A step that was there already (a run that goes on from an older
    checkpoint) replaces everything from that step on.
    """

    def __init__(self, smoothing: float = DEFAULT_SMOOTHING) -> None:
        self._steps = Buffer()
        self._values = Buffer()
        self._smoothed = Buffer()
        self._weight = smoothing
        self._average = 0.0
        self._correction = 1.0  # w^k after k finite numbers
        self.non_finite = 0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def steps(self) -> Floats:
        """Shape (n,), rising."""
        return self._steps.array

    @property
    def values(self) -> Floats:
        """Shape (n,), as they were measured, NaN and infinity included."""
        return self._values.array

    @property
    def smoothed(self) -> Floats:
        """Shape (n,): the debiased moving average."""
        return self._smoothed.array

    @property
    def smoothing(self) -> float:
        """The weight of the moving average, 0 to below 1."""
        return self._weight

    def append(self, step: float, value: float) -> None:
        """Add one measurement."""
        if len(self._steps) and step <= self._steps.array[-1]:
            self._forget_from(step)
        self._steps.append(step)
        self._values.append(value)
        if math.isfinite(value):
            self._average = self._weight * self._average + (1.0 - self._weight) * value
            self._correction *= self._weight
        else:
            self.non_finite += 1
        self._smoothed.append(self._debiased())

    def set_smoothing(self, weight: float) -> None:
        """Change the weight and average everything anew."""
        self._weight = min(max(weight, 0.0), 0.9999)
        self._recompute()

    def last(self) -> float:
        """The newest value; NaN where there is none."""
        return float(self.values[-1]) if len(self) else math.nan

    def index_at(self, step: float) -> int:
        """Position of the newest point at or before `step`; -1 where there is none."""
        return int(np.searchsorted(self.steps, step, side="right")) - 1

    def value_at(self, step: float) -> float:
        """The newest value at or before `step`; NaN where there is none."""
        index = self.index_at(step)
        return float(self.values[index]) if index >= 0 else math.nan

    def smoothed_at(self, step: float) -> float:
        """The moving average at `step`; NaN where there is none."""
        index = self.index_at(step)
        return float(self.smoothed[index]) if index >= 0 else math.nan

    def _debiased(self) -> float:
        if self._correction == 1.0:
            return math.nan
        return self._average / (1.0 - self._correction)

    def _forget_from(self, step: float) -> None:
        length = int(np.searchsorted(self.steps, step, side="left"))
        self._steps.truncate(length)
        self._values.truncate(length)
        self._recompute()

    def _recompute(self) -> None:
        smoothed = smooth(self.values, self._weight)
        self._smoothed.replace(smoothed)
        finite = int(np.isfinite(self.values).sum())
        self.non_finite = len(self) - finite
        self._correction = self._weight ** finite
        self._average = float(smoothed[-1]) * (1.0 - self._correction) if finite else 0.0


class RunSeries:
    """Every series of one run, filled by its events. Memory is in GB, the rest in its own unit."""

    def __init__(self, smoothing: float = DEFAULT_SMOOTHING) -> None:
        self.loss = Series(smoothing)
        self.validation_loss = Series(0.0)
        self.learning_rate = Series(0.0)
        self.grad_norm = Series(smoothing)
        self.tokens_per_second = Series(smoothing)
        self.memory = Series(0.0)

    @classmethod
    def from_events(cls, log: Iterable[events.Event], smoothing: float = DEFAULT_SMOOTHING) -> "RunSeries":
        """Fill all series from a whole log."""
        series = cls(smoothing)
        for event in log:
            series.add(event)
        return series

    def add(self, event: events.Event) -> bool:
        """Take what the event tells. True if a series grew."""
        if isinstance(event, events.StepDone):
            self.loss.append(event.step, event.loss)
            self.learning_rate.append(event.step, event.learning_rate)
            self.grad_norm.append(event.step, event.grad_norm)
            self.tokens_per_second.append(event.step, tokens_per_second(event))
            self.memory.append(event.step, memory_bytes(event) / BYTES_PER_GB)
            return True
        if isinstance(event, events.Evaluated):
            self.validation_loss.append(event.step, event.loss)
            return True
        return False

    def set_smoothing(self, weight: float) -> None:
        """Change the moving average of the noisy quantities."""
        for series in (self.loss, self.grad_norm, self.tokens_per_second):
            series.set_smoothing(weight)

    def everything(self) -> dict[str, Series]:
        """All series by name, with the unit in the name where it has one."""
        return {
            "loss": self.loss, "validation_loss": self.validation_loss, "learning_rate": self.learning_rate,
            "gradient_norm": self.grad_norm, "tokens_per_second": self.tokens_per_second, "memory_gb": self.memory,
        }


def tokens_per_second(step: events.StepDone) -> float:
    """Speed of one step, tokens without padding; NaN where the clock did not move."""
    return step.tokens / step.seconds if step.seconds > 0 else math.nan


def memory_bytes(step: events.StepDone) -> int:
    """What the person waits for to run out: the accelerator's memory where one is used, else the process's."""
    return step.device_bytes or step.rss_bytes


def as_csv(columns: dict[str, Series]) -> str:
    """A table with one line for each step: the step and every series; empty where nothing was measured."""
    steps = np.unique(np.concatenate([series.steps for series in columns.values()])) if columns else np.empty(0)
    cells: list[list[str]] = [[f"{step:.0f}" for step in steps]]
    for series in columns.values():
        column = [""] * len(steps)
        for position, value in zip(np.searchsorted(steps, series.steps), series.values, strict=True):
            column[position] = repr(float(value))
        cells.append(column)
    header = ",".join(_csv_name(name) for name in ("step", *columns))
    return "\n".join([header, *(",".join(row) for row in zip(*cells, strict=True))]) + "\n"


def _csv_name(name: str) -> str:
    """Quote a name that would break the table, and disarm one that a spreadsheet would take for a formula."""
    if name[:1] in "=+-@\t\r":
        name = "'" + name
    if any(character in name for character in ',"\n\r'):
        return '"' + name.replace('"', '""') + '"'
    return name
