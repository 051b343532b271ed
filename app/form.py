"""A form made from a config section: every field of the model appears, none is named here."""

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from PySide6.QtCore import Signal
from PySide6.QtWidgets import QGridLayout, QVBoxLayout, QWidget

from app import theme
from app.field_editor import FieldEditor, extra, title
from app.fields import make_editor
from app.scrolling import reveal
from app.widgets import ProblemLine, button, label
from core.run_problems import Problem

COLUMNS = 2


class FormField(QWidget):
    """Title above, editor, and the problem under it."""

    def __init__(self, path: str, info: FieldInfo) -> None:
        super().__init__()
        self.path = path
        self.group: str = extra(info).get("group", "")
        self.editor: FieldEditor = make_editor(info)
        self.problem = ProblemLine()
        caption = label(title(info) or path.split(".")[1])
        caption.setBuddy(self.editor)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(caption)
        layout.addWidget(self.editor)
        layout.addWidget(self.problem)
        layout.addStretch(1)

    def set_problem(self, problem: Problem | None, advice: Problem | None = None) -> None:
        """Say what is wrong (red), or what is unwise (amber), or nothing."""
        shown = problem or advice
        text = f"{shown.message} {shown.hint}".strip() if shown else ""
        self.problem.set_problem(text, "danger" if problem else "warning")
        self.editor.set_wrong(problem is not None)


class Form(QWidget):
    """The fields of one group ("Adapter", "Learning"), those marked `more` folded away.

    `changed(path, value)` and `refused(path, text)` tell what the person did.
    """

    changed = Signal(str, object)
    refused = Signal(str, str)

    def __init__(self, section: str, model: type[BaseModel], *, without: Collection[str] = (),
                 columns: int = COLUMNS) -> None:
        super().__init__()
        self.model = model
        self.fields: dict[str, FormField] = {}
        self._no_value: set[str] = set()  # fields in which stands what is no value at all
        shown, folded = [], []
        for name, info in model.model_fields.items():
            if name in without:
                continue
            field = self._add(f"{section}.{name}", info)
            (folded if extra(info).get("more") else shown).append(field)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2 * theme.GRID)
        layout.addLayout(_grid(shown, columns))
        self._folded = QWidget()
        self._folded.setLayout(_groups(folded, columns, shown))
        self._folded.setVisible(False)
        self.more = button("More", self._toggle, role="link", icon="caret-right")
        self.more.setAccessibleDescription("Shows or hides the fields that are rarely changed")
        self.more.setVisible(bool(folded))
        layout.addWidget(self.more)
        layout.addWidget(self._folded)

    def _add(self, path: str, info: FieldInfo) -> FormField:
        field = FormField(path, info)
        field.editor.changed.connect(lambda value: self._changed(path, value))
        field.editor.refused.connect(lambda text: self._refused(path, text))
        self.fields[path] = field
        return field

    def _changed(self, path: str, value: object) -> None:
        self._no_value.discard(path)
        self.changed.emit(path, value)

    def _refused(self, path: str, text: str) -> None:
        self._no_value.add(path)
        self.refused.emit(path, text)

    def set_values(self, section: BaseModel, refused: Collection[str] = ()) -> None:
        """Show the values of a section; what was refused stays as it was typed, with its problem."""
        for path, field in self.fields.items():
            value: Any = getattr(section, path.split(".")[1])
            if path not in refused and (path in self._no_value or field.editor.value() != value):
                self._no_value.discard(path)
                field.editor.set_value(value)

    def set_problems(self, problems: Collection[Problem], advice: Collection[Problem] = ()) -> None:
        """Write each problem at its field."""
        wrong = {problem.field: problem for problem in problems}
        unwise = {item.field: item for item in advice}
        for path, field in self.fields.items():
            field.set_problem(wrong.get(path), unwise.get(path))

    def show_field(self, path: str) -> bool:
        """Unfold if needed and give the field the focus. False if it is not in this form."""
        field = self.fields.get(path)
        if field is None:
            return False
        if self._folded.isAncestorOf(field):
            self.set_unfolded(True)
        field.editor.setFocus()
        reveal(field)
        return True

    def set_unfolded(self, unfolded: bool) -> None:
        """Show or hide the fields under "More"."""
        self._folded.setVisible(unfolded)
        self.more.setText("Less" if unfolded else "More")
        self.more.setIcon(theme.icon("caret-down" if unfolded else "caret-right", "accent_text"))

    @property
    def unfolded(self) -> bool:
        """True while the fields under "More" are shown."""
        return not self._folded.isHidden()

    def _toggle(self) -> None:
        self.set_unfolded(self._folded.isHidden())


def _groups(fields: list[FormField], columns: int, shown: list[FormField]) -> QVBoxLayout:
    """Grids below each other, with a heading for each group that is not the one shown above."""
    groups: dict[str, list[FormField]] = {}
    for field in fields:
        groups.setdefault(field.group, []).append(field)
    layout = QVBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(2 * theme.GRID)
    for group, members in groups.items():
        if group and all(field.group != group for field in shown):
            layout.addWidget(label(group, "section"))
        layout.addLayout(_grid(members, columns))
    return layout


def _grid(fields: list[FormField], columns: int) -> QGridLayout:
    grid = QGridLayout()
    grid.setContentsMargins(0, 0, 0, 0)
    grid.setHorizontalSpacing(3 * theme.GRID)
    grid.setVerticalSpacing(2 * theme.GRID)
    for index, field in enumerate(fields):
        grid.addWidget(field, index // columns, index % columns)
    for number in range(columns):
        grid.setColumnStretch(number, 1)
    return grid
