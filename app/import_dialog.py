"""An adapter that was made elsewhere: what it is, which base model here it fits, and what can be done with it."""

from collections.abc import Iterable
from pathlib import Path

from PySide6.QtCore import Signal, Slot
from PySide6.QtWidgets import QComboBox, QDialog, QVBoxLayout, QWidget

from app import theme
from app.loader_table import LoaderTable
from app.operations import Operation, Operations
from app.widgets import ProblemLine, button, column, label, plain_tip, row
from core import events, records
from core.jobs import InspectAdapter
from core.words import percent, plural, size

_WIDTH = 560
_MATCHES = {"same": "the one it was trained on", "fits": "its shapes fit"}


class ImportDialog(QDialog):
    """Looks at an adapter folder and offers what can be done with it.

    Signals: `chat_requested(Path, str)` with the base model; `train_requested(AdapterCard, str)`: go on training
    from it; `export_requested(AdapterCard, str)`.
    """

    chat_requested = Signal(object, str)
    train_requested = Signal(object, str)
    export_requested = Signal(object, str)

    def __init__(self, operations: Operations, path: Path, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Import adapter")
        self.card: records.AdapterCard | None = None
        self.title = label(path.name, "title")
        self.facts = label("Looking at the adapter…", wrap=True, selectable=True)
        self.kinds = label("", "help", wrap=True)
        self.problem = ProblemLine()
        self.bases = QComboBox()
        self.bases.setAccessibleName("Base model")
        self._base_part = QWidget()
        self._base_part.setLayout(column(label("Base model on this machine"), self.bases, spacing=4))
        self.loaders = LoaderTable()
        self.chat_button = button("Chat", lambda: self._tell("chat"), icon="chats", role="primary")
        self.train_button = button("Continue training", lambda: self._tell("train"), icon="play")
        self.export_button = button("Merge or export…", lambda: self._tell("export"), icon="export")
        self._actions = (self.chat_button, self.train_button, self.export_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(*[theme.PAGE_MARGIN] * 4)
        layout.setSpacing(2 * theme.GRID)
        for part in (self.title, self.facts, self.kinds, self._base_part, self.problem, self.loaders):
            layout.addWidget(part)
        layout.addStretch(1)
        layout.addLayout(row(button("Close", self.reject), None, self.export_button, self.train_button,
                             self.chat_button))
        self.setMinimumWidth(_WIDTH)
        self._base_part.hide()
        self.loaders.hide()
        for made in self._actions:
            made.setEnabled(False)
        self._operation = self._look(operations, path)

    def _look(self, operations: Operations, path: Path) -> Operation:
        operation = operations.work(InspectAdapter(path))
        operation.on(events.Progress, self._progress).on(events.AdapterInspected, self._came)
        return operation.on(events.Failed, self._failed).start()

    @Slot(object)
    def _progress(self, event: events.Progress) -> None:
        count = f": {event.done + 1:,} of {event.total:,}" if event.total else ""
        self.facts.setText(f"{event.stage}{count}…")

    @Slot(object)
    def _failed(self, failure: events.Failed) -> None:
        self.facts.setText("This adapter can not be used.")
        self.problem.set_problem(f"{failure.message} {failure.hint}".strip())

    @Slot(object)
    def _came(self, event: events.AdapterInspected) -> None:
        card = self.card = event.card
        self.title.setText(card.name)
        named = f" Its base model is called {card.base_name}." if card.base_name else ""
        self.facts.setText(f"{card.method}, rank {card.rank}, {card.parameters:,} parameters, {size(card.bytes)} in "
                           f"{card.dtype}. {card.origin}{named}")
        self.kinds.setText("\n".join(kind_lines(card.modules)))
        for match in card.bases:
            self.bases.addItem(f"{match.name} ({_MATCHES[match.match]})", str(match.path))
        self._base_part.setVisible(bool(card.bases))
        self.loaders.show_verdicts(card.loaders)
        if not card.bases:
            self.problem.set_problem("No model on this machine fits it. Get its base model on the Model page first, "
                                     "then import the adapter again.", "warning")
        for made in self._actions:
            made.setEnabled(bool(card.bases))
        if not card.settings:
            self.train_button.setEnabled(False)
            self.train_button.setToolTip(plain_tip(f"Training can not go on from it: {card.unlike}."))
        self.adjustSize()

    def _tell(self, what: str) -> None:
        card, base = self.card, self.bases.currentData()
        if card is None or not base:
            return
        self.accept()
        if what == "chat":
            self.chat_requested.emit(card.path, base)
        elif what == "train":
            self.train_requested.emit(card, base)
        else:
            self.export_requested.emit(card, base)

    def done(self, result: int) -> None:
        """Nobody waits for what is not known yet."""
        if self.card is None:
            self._operation.discard()
        super().done(result)


def kind_lines(modules: Iterable[records.AdaptedModule]) -> list[str]:
    """A line for each kind of module: how many, which rank, how strongly they change the weights."""
    kinds: dict[str, list[records.AdaptedModule]] = {}
    for module in modules:
        kinds.setdefault(module.name.rpartition(".")[2], []).append(module)
    lines = []
    for kind, group in kinds.items():
        ranks = sorted({module.rank for module in group})
        span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        shares = [module.share for module in group if module.share is not None]
        change = f", changes the weights by {percent(sum(shares) / len(shares))}" if shares else ""
        lines.append(f"{kind}: {plural(len(group), 'module')}, rank {span}{change}")
    return lines
