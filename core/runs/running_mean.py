"""A moving average that is right from its first value on."""

import math

KEPT = 0.9  # weight of the earlier values


class RunningMean:
    """A moving average without the bias of its beginning; NaN before the first value."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> float:
        """Take in one value (what is not finite is left out); the average so far."""
        if math.isfinite(value):
            self._sum = KEPT * self._sum + (1 - KEPT) * value
            self._weight = KEPT * self._weight + 1 - KEPT
        return self.value

    @property
    def value(self) -> float:
        """The average so far."""
        return self._sum / self._weight if self._weight else math.nan
