"""Spin boxes that write numbers as people do: 16 instead of 16.00, 2e-4 instead of 0.0002."""

from PySide6.QtGui import QValidator
from PySide6.QtWidgets import QDoubleSpinBox

SMALL = 0.01  # numbers below this are written and stepped scientifically


class ShortBox(QDoubleSpinBox):
    """A spin box that writes 16, not 16.000000000000."""

    def textFromValue(self, value: float) -> str:  # noqa: N802
        """As few digits as tell the value."""
        return f"{value:.12g}"


class ScientificBox(ShortBox):
    """A spin box that reads and writes 2e-4, and steps through 1, 2, 5, 10."""

    def textFromValue(self, value: float) -> str:  # noqa: N802
        """2e-4 rather than 0.0002."""
        return scientific(value)

    def valueFromText(self, text: str) -> float:  # noqa: N802
        """Any spelling of a number."""
        try:
            return float(text)
        except ValueError:
            return self.value()

    def validate(self, text: str, position: int) -> tuple[QValidator.State, str, int]:
        """A number is acceptable, its beginnings are on the way."""
        try:
            value = float(text)
        except ValueError:
            ok = all(letter in "0123456789.eE-+" for letter in text)
            return (QValidator.State.Intermediate if ok else QValidator.State.Invalid), text, position
        inside = self.minimum() <= value <= self.maximum()
        return (QValidator.State.Acceptable if inside else QValidator.State.Intermediate), text, position

    def stepBy(self, steps: int) -> None:  # noqa: N802
        """One step is 1 -> 2 -> 5 -> 10."""
        value = self.value() or 1e-4
        for _ in range(abs(steps)):
            value = next_of_125(value) if steps > 0 else 1 / next_of_125(1 / value)
        self.setValue(value)


def scientific(value: float) -> str:
    """2e-4 for 0.0002, 0.05 as it is."""
    if value == 0 or abs(value) >= SMALL:
        return f"{value:.12g}"
    mantissa, exponent = f"{value:.11e}".split("e")
    return f"{float(mantissa):.12g}e{int(exponent)}"


def next_of_125(value: float) -> float:
    """The next number above `value` of the row … 1, 2, 5, 10, 20 …"""
    exponent = int(f"{value:e}".split("e")[1])
    for power in (exponent, exponent + 1):
        for step in (1, 2, 5):
            candidate = float(f"{step}e{power}")
            if candidate > value * 1.0000001:
                return candidate
    raise AssertionError(value)
