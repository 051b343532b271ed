"""The Method page: the form of the adapter and the training, and the tree of target layers."""

from PySide6.QtCore import Slot
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QHBoxLayout, QSizePolicy, QStackedLayout, QVBoxLayout, QWidget

from app import theme
from app.draft import Draft
from app.form import Form
from app.memory_probe import MemoryProbe
from app.memory_view import MemoryView
from app.method_choice import FIELD, MethodChoice, OptionalTable, optional_tables
from app.scrolling import scrolled
from app.target_choice import TARGETS
from app.target_tree import TargetTree
from app.widgets import Card, EmptyState, ProblemLine, label
from core import words
from core.config import AdapterConfig, FullConfig, RunConfig, TargetConfig
from core.estimate import Estimate
from core.records import ModelCard
from core.run_problems import advice
from core.targets import keeps_tied

FORM_WIDTH = 424  # pixels; room for all fields, so that unfolding does not widen it
TARGETS_WIDTH = 294  # pixels at least; the form has its width then in the smallest window, too
LOW = 540  # pixels of the page; in less the tree needs the height


class MethodPage(QWidget):
    """Edits the sections `adapter` and `training` of the draft."""

    def __init__(self, draft: Draft, probe: MemoryProbe) -> None:
        super().__init__()
        self._draft = draft
        self._probe = probe
        self._shown_targets: tuple[object, ...] = ()
        self.method = MethodChoice()
        self.method.chosen.connect(draft.set_value)
        self.adapter_form = self._make_adapter_form()
        self.tables = [OptionalTable(name, kind) for name, kind in optional_tables()]
        self.training_form = Form("training", type(draft.config.training))
        for form in (self.training_form, *(table.form for table in self.tables)):
            self._listen_to(form)
        for table in self.tables:
            table.switched.connect(draft.set_value)
        self.tree = TargetTree()
        self.tree.chosen.connect(self._targets_chosen)
        self.target_problem = ProblemLine()
        self.live = label("", "strong", wrap=True)
        self.memory = MemoryView(probe)
        self.empty = EmptyState("The tree shows the layers of the model as soon as one is chosen.",
                                icon="tree-structure")
        layout = QHBoxLayout(self)
        margin = theme.PAGE_MARGIN
        layout.setContentsMargins(margin, margin, margin, margin)
        layout.setSpacing(theme.CARD_GAP)
        layout.addWidget(self._build_forms())
        layout.addWidget(self._build_targets(), 1)
        draft.config_changed.connect(self._config_changed)
        draft.card_changed.connect(self._card_changed)
        draft.scan_changed.connect(lambda _scan: self._show_estimate())
        draft.problems_changed.connect(lambda _problems: self._show_problems())
        self._config_changed(draft.config)
        self._card_changed(draft.card)

    def _build_forms(self) -> QWidget:
        content = QWidget()
        layout = QVBoxLayout(content)
        layout.setContentsMargins(0, 0, 12, 0)  # the scroll bar keeps off the cards
        layout.setSpacing(theme.CARD_GAP)
        self._adapter_card = Card("Adapter")
        learning = Card("Learning")
        for card in (self._adapter_card, learning):
            card.body.setSpacing(2 * theme.GRID)
        self._adapter_card.body.addWidget(self.method)
        self._adapter_card.body.addWidget(self.adapter_form)
        learning.body.addWidget(self.training_form)
        for card in (self._adapter_card, *self.tables, learning):
            layout.addWidget(card)
        layout.addStretch(1)
        area = scrolled(content, fitting=FORM_WIDTH)
        area.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Expanding)
        return area

    def _make_adapter_form(self) -> Form:
        form = Form("adapter", type(self._draft.config.adapter), without=("target_modules", "method"))
        self._listen_to(form)
        return form

    def _listen_to(self, form: Form) -> None:
        form.changed.connect(self._draft.set_value)
        form.refused.connect(self._draft.set_error)

    def _renew_adapter_form(self) -> None:
        """Another method has other fields."""
        old, self.adapter_form = self.adapter_form, self._make_adapter_form()
        self._adapter_card.body.replaceWidget(old, self.adapter_form)
        self.adapter_form.set_unfolded(old.unfolded)
        old.hide()
        old.deleteLater()

    def _forms(self) -> tuple[Form, ...]:
        return (self.adapter_form, *(table.form for table in self.tables), self.training_form)

    def _build_targets(self) -> Card:
        card = Card("Target layers")
        card.setMinimumWidth(TARGETS_WIDTH)
        inner = QWidget()
        self._stack = QStackedLayout(inner)
        self._stack.addWidget(self.empty)
        self._stack.addWidget(self.tree)
        card.body.addWidget(inner, 1)
        card.body.addWidget(self.target_problem)
        card.body.addWidget(self.live)
        card.body.addWidget(self.memory)
        return card

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 -- Qt's name
        """A low window keeps its height for the tree."""
        super().resizeEvent(event)
        self.memory.set_low(self.height() < LOW)

    def show_field(self, path: str) -> bool:
        """Lead to the field of a problem."""
        if path == TARGETS:
            self.tree.line.setFocus()
            return True
        if path == FIELD:
            self.method.setFocus()
            return True
        return any(form.show_field(path) for form in self._forms())

    @Slot(object)
    def _config_changed(self, config: RunConfig) -> None:
        if self.adapter_form.model is not type(config.adapter):
            self._renew_adapter_form()
        self.method.set_method(config.adapter.method)
        self.adapter_form.set_values(config.adapter, self._draft.refused)
        for table in self.tables:
            table.set_values(getattr(config, table.section), self._draft.refused)
        self.training_form.set_values(config.training, self._draft.refused)
        self._show_targets(config.adapter)
        self._show_estimate()
        self._show_problems()

    @Slot(object)
    def _card_changed(self, card: ModelCard | None) -> None:
        self._stack.setCurrentIndex(0 if card is None else 1)
        if card is not None:
            self.tree.set_modules(card.modules)
            self._shown_targets = ()
            self._show_targets(self._draft.config.adapter)
        self._show_estimate()
        self._show_problems()

    @Slot(dict)
    def _targets_chosen(self, values: dict[str, object]) -> None:
        self._shown_targets = ()  # ticks or text are ahead of the config, or apart from it while it refuses them
        if self._draft.set_values(values):
            self._show_targets(self._draft.config.adapter)

    def _show_targets(self, adapter: AdapterConfig) -> None:
        """Tick anew only where the choice has changed: what the config refuses stays in sight."""
        self.tree.setEnabled(isinstance(adapter, TargetConfig))
        if not isinstance(adapter, TargetConfig):
            return
        targets = (adapter.method, adapter.target_modules, adapter.first_layer, adapter.last_layer, keeps_tied(adapter))
        if targets == self._shown_targets or TARGETS in self._draft.refused:
            self.tree.set_rank(adapter)
        else:
            self._shown_targets = targets
            self.tree.set_adapter(adapter)

    def _show_estimate(self) -> None:
        found = self._probe.estimate()
        file = "model files" if isinstance(self._draft.config.adapter, FullConfig) else "adapter file"
        self.live.setText("" if found is None else f"{live_line(found)} · {file} {words.size(found.adapter_bytes)}")

    def _show_problems(self) -> None:
        draft = self._draft
        unwise = advice(draft.config, draft.card, draft.scan)
        self.method.set_problems(draft.problems)
        for form in self._forms():
            form.set_problems(draft.problems, unwise)
        wrong = next((problem for problem in draft.problems if problem.field == TARGETS), None)
        told = wrong or next((item for item in unwise if item.field == TARGETS), None)
        self.target_problem.set_problem(f"{told.message} {told.hint}".strip() if told else "",
                                        "danger" if wrong else "warning")
        self.tree.set_wrong(wrong is not None)
        self.live.setVisible(wrong is None)
        self.memory.setVisible(wrong is None)


def live_line(found: Estimate) -> str:
    """`4.9 M of 134.5 M parameters trained (3.6%)`."""
    return (f"{words.count(found.trainable_parameters)} of {words.count(found.total_parameters)} parameters trained "
            f"({words.percent(found.share)})")
