"""What is known of a model, and whether training it fits this machine."""

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QGridLayout, QStackedLayout, QVBoxLayout, QWidget

from app import theme
from app.memory_probe import MemoryProbe
from app.memory_view import MemoryView
from app.scrolling import scrolled
from app.widgets import Card, ElidedLabel, EmptyState, ProblemLine, label
from core import words
from core.records import ModelCard

FINGERPRINT_SHOWN = 12
NOTHING_CHOSEN = "Choose a model on the left. The starter comes along and is a good beginning."


class ModelCardView(QWidget):
    """A card with facts and a memory bar; without a model one sentence says what to do."""

    def __init__(self, probe: MemoryProbe) -> None:
        super().__init__()
        self.empty = EmptyState(NOTHING_CHOSEN, icon="cube")
        self._facts: dict[str, ElidedLabel] = {}
        self.name = ElidedLabel("", "title")
        self.origin = label("", "help", wrap=True, selectable=True)
        self.warnings = QVBoxLayout()
        self.warnings.setSpacing(4)
        self.memory = MemoryView(probe)
        card = Card()
        card.body.setSpacing(2 * theme.GRID)
        holder = QWidget()
        inside = QVBoxLayout(holder)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.addWidget(card)
        card.body.addWidget(self.name)
        card.body.addLayout(self._build_facts())
        card.body.addLayout(self.warnings)
        card.body.addWidget(label("Does it fit?", "section"))
        card.body.addWidget(self.memory)
        card.body.addWidget(label("Origin", "section"))
        card.body.addWidget(self.origin)
        card.body.addStretch(1)
        self._stack = QStackedLayout(self)
        self._stack.addWidget(self.empty)
        self._stack.addWidget(scrolled(holder))

    def _build_facts(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(3 * theme.GRID)
        grid.setVerticalSpacing(12)
        names = ("Architecture", "Layers", "Parameters", "Context", "Numbers", "Vocabulary", "Chat template",
                 "Fingerprint")
        for number, name in enumerate(names):
            value = ElidedLabel()
            value.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            if name == "Fingerprint":
                value.setFont(theme.font("mono"))
            cell = QVBoxLayout()
            cell.setSpacing(2)
            cell.addWidget(label(name, "help"))
            cell.addWidget(value)
            grid.addLayout(cell, number // 2, number % 2)
            self._facts[name] = value
        grid.setColumnStretch(0, 1)
        grid.setColumnStretch(1, 1)
        return grid

    def show_card(self, card: ModelCard | None, *, chosen: bool, refused: bool = False) -> None:
        """Show a model; while there is none, say so (the page says why it is refused)."""
        self._stack.setCurrentIndex(0 if card is None else 1)
        if card is None:
            waiting = "Looking at the model…" if chosen else NOTHING_CHOSEN
            self.empty.sentence.setText("This model can not be used. The reason stands on the left."
                                        if refused else waiting)
            return
        self.name.set_text(card.name)
        self.origin.setText(card.origin)
        for name, value in facts(card).items():
            self._facts[name].set_text(value)
        while (item := self.warnings.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.deleteLater()
        for warning in card.warnings:
            line = ProblemLine()
            line.set_problem(warning, "warning")
            self.warnings.addWidget(line)

def facts(card: ModelCard) -> dict[str, str]:
    """The card's figures in words."""
    width = f" × {card.hidden_size:,}" if card.hidden_size else ""  # noqa: RUF001
    return {
        "Architecture": f"{card.architecture} ({card.model_type})",
        "Layers": f"{card.layers}{width}",
        "Parameters": words.count(card.parameters),
        "Context": f"{card.context_length:,} tokens" if card.context_length else "not stated",
        "Numbers": f"{card.dtype}, {words.size(card.bytes_on_disk)} on the disk",
        "Vocabulary": f"{card.vocabulary:,} tokens",
        "Chat template": "yes" if card.has_chat_template else "none",
        "Fingerprint": card.fingerprint[:FINGERPRINT_SHOWN],
    }
