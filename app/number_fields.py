"""Editors of config fields that hold numbers."""

from typing import Any

from pydantic.fields import FieldInfo
from PySide6.QtCore import QLocale
from PySide6.QtWidgets import QDoubleSpinBox, QLineEdit, QSpinBox

from app.field_editor import FieldEditor, extra, limits
from app.number_boxes import SMALL, ScientificBox, ShortBox
from app.widgets import spin_margin

LARGEST_INT = 2**31 - 1


class IntEditor(FieldEditor):
    """A whole number within its limits."""

    def __init__(self, info: FieldInfo) -> None:
        super().__init__(info)
        low, high = limits(info)
        self._box = QSpinBox()
        self._box.setRange(int(low if low is not None else -LARGEST_INT),
                           int(min(high if high is not None else LARGEST_INT, LARGEST_INT)))
        self._box.setGroupSeparatorShown(True)
        self._box.setLocale(QLocale(QLocale.Language.English, QLocale.Country.UnitedStates))
        self._box.setFixedWidth(120)
        spin_margin(self._box)
        self._box.valueChanged.connect(self.changed.emit)
        self._place(self._box)

    def set_value(self, value: Any) -> None:
        """Show a value without emitting `changed`."""
        self._box.blockSignals(True)
        self._box.setValue(value)
        self._box.blockSignals(False)

    def value(self) -> int:
        """The value that is shown."""
        return self._box.value()


class OptionalIntEditor(FieldEditor):
    """A whole number, or nothing."""

    def __init__(self, info: FieldInfo) -> None:
        super().__init__(info)
        self._line = QLineEdit()
        self._line.setPlaceholderText(extra(info).get("empty") or "none")
        self._line.setFixedWidth(120)
        self._line.textEdited.connect(self._edited)
        self._place(self._line)

    def set_value(self, value: Any) -> None:
        """Show a value without emitting `changed`."""
        if not self._line.hasFocus() or self._parsed() != value:
            self._line.setText("" if value is None else str(value))

    def value(self) -> int | None:
        """The value that is shown; None where there is none (or no number)."""
        parsed = self._parsed()
        return parsed if isinstance(parsed, int) else None

    def _parsed(self) -> int | str | None:
        text = self._line.text().strip().replace(",", "")
        if not text:
            return None
        try:
            return int(text)
        except ValueError:
            return text

    def _edited(self) -> None:
        parsed = self._parsed()
        if isinstance(parsed, str):
            self.refused.emit("This is not a whole number; leave it empty for none.")
        else:
            self.changed.emit(parsed)


class FloatEditor(FieldEditor):
    """A number; small ones (learning rates) are written and stepped scientifically."""

    def __init__(self, info: FieldInfo) -> None:
        super().__init__(info)
        low, high = limits(info)
        default = info.default if isinstance(info.default, float | int) else 1.0
        self._box: QDoubleSpinBox = ScientificBox() if 0 < default < SMALL else ShortBox()
        self._box.setDecimals(12)
        self._box.setRange(-1e12 if low is None else low, 1e12 if high is None else high)
        self._box.setSingleStep(0.01 if default < 1 else 1.0 if default >= 4 else 0.5)
        self._box.setLocale(QLocale.c())
        self._box.setKeyboardTracking(False)
        self._box.setFixedWidth(120)
        spin_margin(self._box)
        self._box.valueChanged.connect(self.changed.emit)
        self._place(self._box)

    def set_value(self, value: Any) -> None:
        """Show a value without emitting `changed`."""
        self._box.blockSignals(True)
        self._box.setValue(value)
        self._box.blockSignals(False)

    def value(self) -> float:
        """The value that is shown."""
        return self._box.value()
