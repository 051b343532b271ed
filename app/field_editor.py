"""What all editors of config fields share: the words of a field, its limits, and the place of its control."""

from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from PySide6.QtCore import QEvent, QObject, Qt, Signal
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import QAbstractSpinBox, QComboBox, QHBoxLayout, QWidget

from app import theme
from app.number_boxes import scientific
from app.widgets import label, plain_tip


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
