"""The choice of the method, and the optional tables beside it, each a card that is switched on."""

from collections.abc import Collection, Iterator
from typing import Any, get_args

from pydantic import BaseModel
from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QCheckBox, QComboBox, QVBoxLayout, QWidget

from app import theme
from app.field_editor import extra, words
from app.form import Form
from app.widgets import Card, ProblemLine, label, plain_tip
from core.config import METHODS, LowRankConfig, RunConfig, Section
from core.run_problems import Problem

FIELD = "adapter.method"


class MethodChoice(QWidget):
    """Which method; one sentence says what it does. `chosen(path, name)` when the person picks another."""

    chosen = Signal(str, object)

    def __init__(self) -> None:
        super().__init__()
        self.box = QComboBox()
        self.box.setAccessibleName("Method")
        for name, kind in METHODS.items():
            info = kind.model_fields["method"]
            self.box.addItem(extra(info)["choices_text"].get(name, name), name)
            self.box.setItemData(self.box.count() - 1, plain_tip(words(info)), Qt.ItemDataRole.ToolTipRole)
        self.box.activated.connect(lambda _index: self.chosen.emit(FIELD, self.box.currentData()))
        self.sentence = label("", "help", wrap=True)
        self.problem = ProblemLine()
        caption = label("Method")
        caption.setBuddy(self.box)
        self.setFocusProxy(self.box)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        for widget in (caption, self.box, self.sentence, self.problem):
            layout.addWidget(widget)

    def set_method(self, name: str) -> None:
        """Show the method that the config has."""
        self.box.setCurrentIndex(self.box.findData(name))
        self.sentence.setText(METHODS[name].model_fields["method"].description or "")

    def set_problems(self, problems: Collection[Problem]) -> None:
        """Write the problem of the method itself, if there is one."""
        wrong = next((problem for problem in problems if problem.field == FIELD), None)
        self.problem.set_problem(f"{wrong.message} {wrong.hint}".strip() if wrong else "", "danger")


class OptionalTable(Card):
    """A table of the config that may be left out: a tick in the heading, its form below while it is there."""

    switched = Signal(str, object)

    def __init__(self, section: str, kind: type[Section]) -> None:
        super().__init__()
        self.section = section
        self._kind = kind
        self.tick = QCheckBox(group_title(kind))
        self.tick.toggled.connect(lambda on: self.switched.emit(section, kind() if on else None))
        self.form = Form(section, kind)
        self.form.setVisible(False)
        self.body.setSpacing(2 * theme.GRID)
        self.body.addWidget(self.tick)
        about = label(one_sentence(kind), "help", wrap=True)
        self.body.addWidget(about)
        self.body.addWidget(self.form)

    def set_values(self, values: BaseModel | None, refused: Collection[str] = ()) -> None:
        """Show the table of the config, or that there is none."""
        self.tick.blockSignals(True)
        self.tick.setChecked(values is not None)
        self.tick.blockSignals(False)
        self.form.setVisible(values is not None)
        if values is not None:
            self.form.set_values(values, refused)


def optional_tables() -> Iterator[tuple[str, type[Section]]]:
    """Name and model of every table of the run file that may be left out."""
    for name, info in RunConfig.model_fields.items():
        members: tuple[Any, ...] = get_args(info.annotation)
        if type(None) in members:
            yield name, next(member for member in members if member is not type(None))


def group_title(kind: type[Section]) -> str:
    """The heading of a table: the group of its first field."""
    return str(extra(next(iter(kind.model_fields.values())))["group"])


def one_sentence(kind: type[Section]) -> str:
    """What a table is, from its description, without the name before the colon and the source behind."""
    text = (kind.__doc__ or "").strip().splitlines()[0]
    text = text.partition(": ")[2] or text
    text = text.partition(" (arXiv")[0].rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def method_words(config: RunConfig) -> str:
    """`LoRA, rank 8 + prefix`."""
    adapter = config.adapter
    info = type(adapter).model_fields["method"]
    words_of = extra(info)["choices_text"].get(adapter.method, adapter.method)
    rank = f", rank {adapter.rank}" if isinstance(adapter, LowRankConfig) else ""
    beside = "".join(f" + {name}" for name, _ in optional_tables() if getattr(config, name) is not None)
    return f"{words_of}{rank}{beside}"
