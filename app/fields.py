"""One editor for one config field: made from the field's type, limits and words in `core.config`."""

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from PySide6.QtCore import QEvent, QLocale, QObject, Qt, Signal
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QLineEdit,
    QPlainTextEdit,
    QSpinBox,
    QWidget,
)

from app import theme
from app.number_boxes import SMALL, ScientificBox, ShortBox, scientific
from app.widgets import label, plain_tip, spin_margin

LARGEST_INT = 2**31 - 1


class FieldEditor(QWidget):
    """Base of all editors. `changed(value)` is emitted when the person changes the value.

    `refused(text)` is emitted where what was typed is no value at all.
    """

    changed = Signal(object)
    refused = Signal(str)

    def __init__(self, info: FieldInfo) -> None:
        super().__init__()
        self.info = info
        self.input: QWidget = self
        self._layout = QHBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(theme.GRID)

    def set_value(self, value: Any) -> None:
        """Show a value without emitting `changed`."""
        raise NotImplementedError

    def value(self) -> Any:
        """The value that is shown."""
        raise NotImplementedError

    def set_wrong(self, wrong: bool) -> None:
        """Mark the editor's frame."""
        if bool(self.input.property("wrong")) != wrong:
            self.input.setProperty("wrong", wrong)
            style = self.input.style()
            style.unpolish(self.input)
            style.polish(self.input)

    def _place(self, control: QWidget) -> None:
        """Put the control and its unit into the row, with its name and words for all readers."""
        self.input = control
        self.setFocusProxy(control)
        control.setAccessibleName(title(self.info))
        tip = words(self.info)
        for widget in (self, control):
            widget.setToolTip(plain_tip(tip))
            widget.setWhatsThis(plain_tip(tip))
        control.setAccessibleDescription(tip)
        self._layout.addWidget(control)
        unit = extra(self.info).get("unit", "")
        if unit:
            self._layout.addWidget(label(unit, "help"))
        self._layout.addStretch(1)
        if isinstance(control, QAbstractSpinBox | QComboBox):
            control.installEventFilter(_NoWheel(control))
            control.setFocusPolicy(Qt.FocusPolicy.StrongFocus)


class _NoWheel(QObject):
    """A wheel over a field scrolls the form; it must not change the field by accident."""

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Let the wheel through only to a field that has the focus."""
        if isinstance(event, QWheelEvent) and isinstance(watched, QWidget) and not watched.hasFocus():
            event.ignore()
            return True
        return False


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
        self._line.setPlaceholderText("none")
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


class BoolEditor(FieldEditor):
    """Yes or no."""

    def __init__(self, info: FieldInfo) -> None:
        super().__init__(info)
        self._box = QCheckBox("On")
        self._box.toggled.connect(self.changed.emit)
        self._place(self._box)

    def set_value(self, value: Any) -> None:
        """Show a value without emitting `changed`."""
        self._box.blockSignals(True)
        self._box.setChecked(bool(value))
        self._box.blockSignals(False)

    def value(self) -> bool:
        """The value that is shown."""
        return self._box.isChecked()


class ChoiceEditor(FieldEditor):
    """One of a few words."""

    def __init__(self, info: FieldInfo, choices: Sequence[Any]) -> None:
        super().__init__(info)
        names = extra(info).get("choices_text") or {}
        self._box = QComboBox()
        self._box.setMinimumWidth(120)
        for choice in choices:
            self._box.addItem(str(names.get(choice, choice)), choice)
        self._box.activated.connect(lambda _index: self.changed.emit(self.value()))
        self._place(self._box)

    def set_value(self, value: Any) -> None:
        """Show a value without emitting `changed`."""
        self._box.setCurrentIndex(self._box.findData(value))

    def value(self) -> Any:
        """The value that is shown."""
        return self._box.currentData()


class OnlyChoice(FieldEditor):
    """A field that has but one value so far: it is told, there is nothing to choose."""

    def __init__(self, info: FieldInfo, choice: Any) -> None:
        super().__init__(info)
        self._choice = choice
        names = extra(info).get("choices_text") or {}
        shown = QLineEdit(str(names.get(choice, choice)))
        shown.setReadOnly(True)
        shown.setEnabled(False)
        shown.setFixedWidth(120)
        self._place(shown)

    def set_value(self, value: Any) -> None:
        """There is only one."""

    def value(self) -> Any:
        """The value that is shown."""
        return self._choice


class TextEditor(FieldEditor):
    """A word or a sentence."""

    def __init__(self, info: FieldInfo) -> None:
        super().__init__(info)
        self._line = QLineEdit()
        self._line.setMinimumWidth(120)
        self._line.textEdited.connect(self.changed.emit)
        self._place(self._line)

    def set_value(self, value: Any) -> None:
        """Show a value without emitting `changed`."""
        if self._line.text() != str(value):
            self._line.setText(str(value))

    def value(self) -> str:
        """The value that is shown."""
        return self._line.text()


class PathsEditor(FieldEditor):
    """Several files (or other texts), one to a line."""

    def __init__(self, info: FieldInfo) -> None:
        super().__init__(info)
        self._text = QPlainTextEdit()
        self._text.setTabChangesFocus(True)
        self._text.setFixedHeight(72)
        self._text.textChanged.connect(lambda: self.changed.emit(self.value()))
        self._place(self._text)
        self._layout.setStretch(0, 1)

    def set_value(self, value: Any) -> None:
        """Show a value without emitting `changed`."""
        lines = (value,) if isinstance(value, str) else tuple(value)
        if self.value() != lines:
            self._text.blockSignals(True)
            self._text.setPlainText("\n".join(lines))
            self._text.blockSignals(False)

    def value(self) -> tuple[str, ...]:
        """The value that is shown."""
        return tuple(line.strip() for line in self._text.toPlainText().splitlines() if line.strip())


def make_editor(info: FieldInfo) -> FieldEditor:
    """The editor that fits a field's type.

    Raises:
        TypeError: a type that no editor shows; a new kind of field needs one here.
    """
    kind = _bare(info.annotation)
    if get_origin(kind) is Literal:
        choices = list(get_args(kind))
        return ChoiceEditor(info, choices) if len(choices) > 1 else OnlyChoice(info, choices[0])
    members = [_bare(member) for member in _union_members(kind)]
    if bool in members:
        return BoolEditor(info)
    if members == [int]:
        return OptionalIntEditor(info) if type(None) in get_args(kind) else IntEditor(info)
    if float in members:
        return FloatEditor(info)
    if str in members:
        return TextEditor(info)
    if any(get_origin(member) is tuple for member in members):
        return PathsEditor(info)
    raise TypeError(f"no editor for a field of type {kind}")


def title(info: FieldInfo) -> str:
    """The field's name for people."""
    return info.title or ""


def words(info: FieldInfo) -> str:
    """Description and limits, for tool tip and What's This."""
    low, high = limits(info)
    parts = [info.description or ""]
    if low is not None and high is not None:
        parts.append(f"From {_number(low)} to {_number(high)}.")
    elif low is not None:
        parts.append(f"At least {_number(low)}.")
    elif high is not None:
        parts.append(f"At most {_number(high)}.")
    return "\n".join(part for part in parts if part)


def extra(info: FieldInfo) -> dict[str, Any]:
    """Group, unit, more and choices_text of a field."""
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def limits(info: FieldInfo) -> tuple[float | None, float | None]:
    """Smallest and largest allowed value; an open limit counts like a closed one here."""
    low = high = None
    for item in info.metadata:
        if isinstance(item, Ge):
            low = item.ge
        elif isinstance(item, Gt):
            low = item.gt
        elif isinstance(item, Le):
            high = item.le
        elif isinstance(item, Lt):
            high = item.lt
    return low, high  # type: ignore[return-value]  # numbers in all our fields


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) or value == int(value) else scientific(value)


def _bare(annotation: Any) -> Any:
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _union_members(kind: Any) -> list[Any]:
    if get_origin(kind) in (Union, types.UnionType):
        return [member for member in get_args(kind) if member is not type(None)]
    return [kind]
