"""The target layers as a tree: kinds of modules as rows, their layers as children, tick boxes; the same as text."""

from collections.abc import Sequence

from PySide6.QtCore import QSignalBlocker, Qt, QTimer, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QLineEdit,
    QPushButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from app import theme
from app.target_choice import (
    TARGETS,
    as_config,
    group_modules,
    parse_targets,
    selected,
    shown_modules,
    targets_text,
)
from app.widgets import button, label, plain_tip, row
from core import words
from core.adapter_shapes import trained_parameters
from core.config import FullConfig, LoraConfig, TargetedConfig
from core.records import ModuleInfo

PRESET_WORDS = {
    "all": ("All", "Every weight of the model, with embeddings and norms."),
    "q-v": ("q + v", "The query and value projections of attention, as in the LoRA paper."),
    "attention": ("Attention", "All projections of attention."),
    "all-linear": ("All linear", "Every linear layer except the output layer. Learns most, costs a little more."),
}
_LINE_TIP = ("Names with commas between them, such as q_proj, embed_tokens: each means all whose name ends so.\n"
             r"Or a regular expression of whole names, such as .*\.[0-5]\.mlp\..*")
_SIZES_FROM = 340  # pixels of the tree's width; in less the names need the room
_RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter


class TargetTree(QWidget):
    """Tick boxes for every module that the method can change, and a line that says the same by names or a pattern.

    `chosen(values)` is emitted with the config fields to change: `adapter.target_modules`, and
    the layer range where a tick lies outside of it.
    """

    chosen = Signal(dict)

    def __init__(self) -> None:
        super().__init__()
        self._modules: tuple[ModuleInfo, ...] = ()
        self._shown: tuple[ModuleInfo, ...] = ()
        self._adapter: TargetedConfig = LoraConfig()
        self._items: dict[str, QTreeWidgetItem] = {}
        self._groups: dict[str, list[ModuleInfo]] = {}
        self.presets: dict[str, QPushButton] = {}
        for name, (text, tip) in PRESET_WORDS.items():
            made = button(text, lambda name=name: self._choose_preset(name), tip=tip)
            made.setCheckable(True)
            self.presets[name] = made
        self.tree = self._make_tree()
        self.line = self._make_line()
        caption = label("By name or pattern", "help")
        caption.setBuddy(self.line)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(theme.GRID)
        layout.addLayout(row(*self.presets.values(), None))
        layout.addWidget(self.tree, 1)
        layout.addLayout(row(caption, self.line))
        self._settle = QTimer(self)  # one click on a kind ticks all of its layers one by one
        self._settle.setSingleShot(True)
        self._settle.setInterval(0)
        self._settle.timeout.connect(self._ticked)

    def _make_tree(self) -> QTreeWidget:
        tree = QTreeWidget()
        tree.setColumnCount(3)
        tree.setHeaderLabels(["Layer", "Size", "Trained"])
        tree.setAccessibleName("Target layers")
        tree.headerItem().setToolTip(1, "Inputs and outputs of the layer")
        tree.headerItem().setToolTip(2, "Parameters that the adapter trains there")
        tree.setUniformRowHeights(True)
        tree.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        tree.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        header = tree.header()
        header.setStretchLastSection(False)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for number in (1, 2):
            header.setSectionResizeMode(number, QHeaderView.ResizeMode.ResizeToContents)
            tree.headerItem().setTextAlignment(number, _RIGHT)
        tree.itemChanged.connect(lambda _item, column: self._settle.start() if column == 0 else None)
        return tree

    def _make_line(self) -> QLineEdit:
        line = QLineEdit()
        line.setAccessibleName("Target layers by name or pattern")
        line.setAccessibleDescription(_LINE_TIP)
        line.setToolTip(plain_tip(_LINE_TIP))
        line.setWhatsThis(plain_tip(_LINE_TIP))
        line.textEdited.connect(lambda text: self.chosen.emit({TARGETS: parse_targets(text, self._adapter)}))
        return line

    def set_modules(self, modules: Sequence[ModuleInfo]) -> None:
        """Show another model's modules."""
        self._modules = tuple(modules)
        self.set_adapter(self._adapter)

    def _fill(self, modules: tuple[ModuleInfo, ...]) -> None:
        """Make the rows anew: another model, or another method, which can change other modules."""
        self._shown, self._groups = modules, group_modules(modules)
        self._items.clear()
        self.tree.clear()
        for name, members in self._groups.items():
            self.tree.addTopLevelItem(self._group_item(name, members))

    def set_adapter(self, adapter: TargetedConfig) -> None:
        """Tick and write what the config chooses, without emitting `chosen`."""
        self._adapter = adapter
        chosen = selected(self._modules, adapter)
        blocker = QSignalBlocker(self.tree)
        if (modules := shown_modules(self._modules, adapter)) != self._shown:
            self._fill(modules)
        for name, item in self._items.items():
            item.setCheckState(0, Qt.CheckState.Checked if name in chosen else Qt.CheckState.Unchecked)
        self._write_sizes()
        blocker.unblock()
        self._settle.stop()
        self._mark_preset(adapter.target_modules)
        self._write_line(adapter.target_modules)

    def set_rank(self, adapter: TargetedConfig) -> None:
        """Write what each row adds at another rank; ticks stay as they are."""
        self._adapter = adapter
        blocker = QSignalBlocker(self.tree)
        self._write_sizes()
        blocker.unblock()

    def set_wrong(self, wrong: bool) -> None:
        """Mark the line, below which the problem stands."""
        if bool(self.line.property("wrong")) != wrong:
            self.line.setProperty("wrong", wrong)
            self.line.style().unpolish(self.line)
            self.line.style().polish(self.line)

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 -- Qt's name
        """Sizes are told in the tool tips alone where names would be cut off."""
        super().resizeEvent(event)
        self.tree.setColumnHidden(1, self.width() < _SIZES_FROM)

    def ticked(self) -> set[str]:
        """Names of the ticked modules."""
        return {name for name, item in self._items.items() if item.checkState(0) == Qt.CheckState.Checked}

    def _group_item(self, name: str, members: list[ModuleInfo]) -> QTreeWidgetItem:
        sizes = {_size(module) for module in members}
        top = QTreeWidgetItem([name, sizes.pop() if len(sizes) == 1 else "", ""])
        top.setFlags(top.flags() | Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsAutoTristate)
        for number in (1, 2):
            top.setTextAlignment(number, _RIGHT)
        top.setCheckState(0, Qt.CheckState.Unchecked)
        top.setToolTip(0, plain_tip("\n".join(_tip(module) for module in members[:3])
                                    + ("\n…" if len(members) > 3 else "")))
        if len(members) == 1 and members[0].layer < 0:
            top.setFlags(top.flags() & ~Qt.ItemFlag.ItemIsAutoTristate)
            self._remember(top, members[0])
            return top
        for module in members:
            child = QTreeWidgetItem([f"Layer {module.layer}" if module.layer >= 0 else module.name, _size(module), ""])
            child.setFlags(child.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            for number in (1, 2):
                child.setTextAlignment(number, _RIGHT)
            child.setToolTip(0, plain_tip(_tip(module)))
            self._remember(child, module)
            top.addChild(child)
        return top

    def _remember(self, item: QTreeWidgetItem, module: ModuleInfo) -> None:
        item.setCheckState(0, Qt.CheckState.Unchecked)
        self._items[module.name] = item

    def _write_sizes(self) -> None:
        for number, members in enumerate(self._groups.values()):
            top = self.tree.topLevelItem(number)
            for module in members:
                self._items[module.name].setText(2, f"{self._trained([module]):,}")
            if top is not None:
                ticked = [member for member in members if self._is_ticked(member.name)]
                added = self._trained(ticked)
                top.setText(2, words.count(added) if added else "")

    def _trained(self, modules: list[ModuleInfo]) -> int:
        """Numbers that are trained in these modules."""
        if isinstance(self._adapter, FullConfig):
            return sum(module.parameters for module in modules)
        return trained_parameters(modules, self._adapter)

    def _is_ticked(self, name: str) -> bool:
        return self._items[name].checkState(0) == Qt.CheckState.Checked

    def _ticked(self) -> None:
        blocker = QSignalBlocker(self.tree)
        self._write_sizes()
        blocker.unblock()
        values = as_config(self._modules, self.ticked(), self._adapter)
        self._mark_preset(values[TARGETS])
        self._write_line(values[TARGETS])
        self.chosen.emit(values)

    def _choose_preset(self, name: str) -> None:
        self._mark_preset(name)
        self.chosen.emit({TARGETS: name})

    def _mark_preset(self, target: object) -> None:
        for name, made in self.presets.items():
            made.setChecked(name == target)
        full = isinstance(self._adapter, FullConfig)
        self.presets["all"].setVisible(full)
        self.presets["q-v"].setVisible(not full)  # the paper's choice for LoRA

    def _write_line(self, target: object) -> None:
        """The choice as text; what is typed stays as it is where it says the same."""
        assert isinstance(target, str | tuple)
        if parse_targets(self.line.text(), self._adapter) != target:
            self.line.setText(targets_text(target))
            self.line.setCursorPosition(0)


def _size(module: ModuleInfo) -> str:
    """Inputs and outputs; of a norm how many numbers it has."""
    return f"{module.in_features:,} → {module.out_features:,}" if module.out_features else f"{module.parameters:,}"


def _tip(module: ModuleInfo) -> str:
    return f"{module.name}: {_size(module)}"
