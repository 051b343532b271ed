"""Editors of config fields that hold a choice, a text or a list."""

from collections.abc import Sequence
from typing import Any

from pydantic.fields import FieldInfo
from PySide6.QtWidgets import QCheckBox, QComboBox, QHBoxLayout, QLineEdit, QPlainTextEdit, QWidget

from app import theme
from app.field_editor import FieldEditor, extra


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
        self._layout.setStretch(self._layout.count() - 1, 0)  # the whole width, none for the space behind

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


class MappingEditor(FieldEditor):
    """Names with a number each, `name = number`, one to a line."""

    def __init__(self, info: FieldInfo, number: type[int] | type[float]) -> None:
        super().__init__(info)
        self._number = number
        self._text = QPlainTextEdit()
        self._text.setTabChangesFocus(True)
        self._text.setFixedHeight(72)
        self._text.setPlaceholderText("name = number, one to a line")
        self._text.textChanged.connect(self._edited)
        self._place(self._text)
        self._layout.setStretch(0, 1)
        self._layout.setStretch(self._layout.count() - 1, 0)  # the whole width, none for the space behind

    def set_value(self, value: Any) -> None:
        """Show a value without emitting `changed`."""
        if self._parsed() != value:
            self._text.blockSignals(True)
            self._text.setPlainText("\n".join(f"{name} = {_digits(number)}" for name, number in value.items()))
            self._text.blockSignals(False)

    def value(self) -> dict[str, Any]:
        """The value that is shown; empty where a line is no name with a number."""
        parsed = self._parsed()
        return parsed if isinstance(parsed, dict) else {}

    def _parsed(self) -> dict[str, Any] | str:
        """The lines as a mapping, or the first one that is not of the form `name = number`."""
        found: dict[str, Any] = {}
        for line in self._text.toPlainText().splitlines():
            name, _, number = line.rpartition("=")  # a pattern may hold "=" itself
            try:
                if line.strip():
                    found[name.strip()] = self._number(number.strip())
            except ValueError:
                return line.strip()
            if "" in found:
                return line.strip()
        return found

    def _edited(self) -> None:
        parsed = self._parsed()
        if isinstance(parsed, str):
            self.refused.emit(f"{parsed!r} is not of the form name = number.")
        else:
            self.changed.emit(parsed)


def _digits(number: float) -> str:
    """All digits, as what is shown is read back: 16, not 16.0, and 0.12345678 as it is."""
    return f"{number:.0f}" if number == int(number) else repr(number)


class PartsEditor(FieldEditor):
    """Several of a few words, each with a tick."""

    def __init__(self, info: FieldInfo, choices: Sequence[str]) -> None:
        super().__init__(info)
        self._boxes = {choice: QCheckBox(choice) for choice in choices}
        ticks = QWidget()
        layout = QHBoxLayout(ticks)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2 * theme.GRID)
        for box in self._boxes.values():
            layout.addWidget(box)
            box.toggled.connect(lambda _on: self.changed.emit(self.value()))
        self._place(ticks)
        self.setFocusProxy(self._boxes[choices[0]])

    def set_value(self, value: Any) -> None:
        """Show a value without emitting `changed`."""
        for choice, box in self._boxes.items():
            box.blockSignals(True)
            box.setChecked(choice in value)
            box.blockSignals(False)

    def value(self) -> tuple[str, ...]:
        """The ticked words."""
        return tuple(choice for choice, box in self._boxes.items() if box.isChecked())
