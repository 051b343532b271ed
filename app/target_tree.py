"""The target layers as a tree: kinds of modules as rows, their layers as children, tick boxes."""

import re
from collections.abc import Sequence

from PySide6.QtCore import QSignalBlocker, Qt, QTimer, Signal
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QPushButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from app import theme
from app.widgets import button, plain_tip, row
from core import words
from core.adapter_shapes import trained_parameters
from core.config import TARGET_PRESETS, FullConfig, LoraConfig, TargetedConfig
from core.errors import AdapterError
from core.records import ModuleInfo
from core.targets import ADAPTABLE, select_targets

PRESET_WORDS = {
    "q-v": ("q + v as in paper", "The query and value projections of attention, as in the LoRA paper."),
    "attention": ("Attention", "All projections of attention."),
    "all-linear": ("All linear", "Every linear layer except the output layer. Learns most, costs a little more."),
}
_NAME = Qt.ItemDataRole.UserRole


class TargetTree(QWidget):
    """Tick boxes for every module that can be adapted.

    `chosen(values)` is emitted with the config fields to change: `adapter.target_modules`, and
    the layer range where a tick lies outside of it.
    """

    chosen = Signal(dict)

    def __init__(self) -> None:
        super().__init__()
        self._modules: tuple[ModuleInfo, ...] = ()
        self._adapter: TargetedConfig = LoraConfig()
        self._items: dict[str, QTreeWidgetItem] = {}
        self._groups: dict[str, list[ModuleInfo]] = {}
        self.presets: dict[str, QPushButton] = {}
        for name in ("q-v", "attention", "all-linear"):
            text, tip = PRESET_WORDS[name]
            made = button(text, lambda name=name: self._choose_preset(name), tip=tip)
            made.setCheckable(True)
            self.presets[name] = made
        self.tree = self._make_tree()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(theme.GRID)
        layout.addLayout(row(*self.presets.values(), None))
        layout.addWidget(self.tree, 1)
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
            tree.headerItem().setTextAlignment(number, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        tree.itemChanged.connect(lambda _item, column: self._settle.start() if column == 0 else None)
        return tree

    def set_modules(self, modules: Sequence[ModuleInfo]) -> None:
        """Show another model's modules."""
        self._modules = tuple(module for module in modules if module.type in ADAPTABLE)
        self._groups = group_modules(self._modules)
        self._items.clear()
        blocker = QSignalBlocker(self.tree)
        self.tree.clear()
        for name, members in self._groups.items():
            self.tree.addTopLevelItem(self._group_item(name, members))
        blocker.unblock()
        self.set_adapter(self._adapter)

    def set_adapter(self, adapter: TargetedConfig) -> None:
        """Tick what the config chooses, without emitting `chosen`."""
        self._adapter = adapter
        chosen = {module.name for module in _selected(self._modules, adapter)}
        blocker = QSignalBlocker(self.tree)
        for name, item in self._items.items():
            item.setCheckState(0, Qt.CheckState.Checked if name in chosen else Qt.CheckState.Unchecked)
        self._write_sizes()
        blocker.unblock()
        self._settle.stop()
        self._mark_preset()

    def set_rank(self, adapter: TargetedConfig) -> None:
        """Write what each row adds at another rank; ticks stay as they are."""
        self._adapter = adapter
        blocker = QSignalBlocker(self.tree)
        self._write_sizes()
        blocker.unblock()

    def ticked(self) -> set[str]:
        """Names of the ticked modules."""
        return {name for name, item in self._items.items() if item.checkState(0) == Qt.CheckState.Checked}

    def _group_item(self, name: str, members: list[ModuleInfo]) -> QTreeWidgetItem:
        sizes = {f"{module.in_features:,} → {module.out_features:,}" for module in members}
        top = QTreeWidgetItem([name, sizes.pop() if len(sizes) == 1 else "", ""])
        top.setFlags(top.flags() | Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsAutoTristate)
        top.setTextAlignment(1, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        top.setTextAlignment(2, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        top.setCheckState(0, Qt.CheckState.Unchecked)
        top.setToolTip(0, plain_tip("\n".join(module.name for module in members[:3])
                                    + ("\n…" if len(members) > 3 else "")))
        if len(members) == 1 and members[0].layer < 0:
            top.setFlags(top.flags() & ~Qt.ItemFlag.ItemIsAutoTristate)
            self._remember(top, members[0])
            return top
        for module in members:
            child = QTreeWidgetItem([f"Layer {module.layer}" if module.layer >= 0 else module.name,
                                     f"{module.in_features:,} → {module.out_features:,}", ""])
            child.setFlags(child.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            for number in (1, 2):
                child.setTextAlignment(number, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            child.setToolTip(0, plain_tip(module.name))
            self._remember(child, module)
            top.addChild(child)
        return top

    def _remember(self, item: QTreeWidgetItem, module: ModuleInfo) -> None:
        item.setData(0, _NAME, module.name)
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
        self._mark_preset(values["adapter.target_modules"])
        self.chosen.emit(values)

    def _choose_preset(self, name: str) -> None:
        self._mark_preset(name)
        self.chosen.emit({"adapter.target_modules": name})

    def _mark_preset(self, target: object = None) -> None:
        shown = self._adapter.target_modules if target is None else target
        for name, made in self.presets.items():
            made.setChecked(name == shown)


def group_modules(modules: Sequence[ModuleInfo]) -> dict[str, list[ModuleInfo]]:
    """Modules by kind, the layers together; one name in two places ("attn.c_proj", "mlp.c_proj") stays two kinds."""
    by_place: dict[str, list[ModuleInfo]] = {}
    for module in modules:
        by_place.setdefault(re.sub(r"\.\d+\.", ".*.", module.name), []).append(module)
    kinds = [place.split(".")[-1] for place in by_place]
    groups = {}
    for place, members in by_place.items():
        kind = place.split(".")[-1]
        groups[kind if kinds.count(kind) == 1 else ".".join(place.split(".")[-2:])] = members
    return groups


def as_config(modules: Sequence[ModuleInfo], ticked: set[str], adapter: TargetedConfig) -> dict[str, object]:
    """The config fields that choose exactly the ticked modules, in the shortest words.

    A preset's name where one equals the choice, else kinds ("q_proj") where whole kinds are
    ticked, else the full names of the modules. An empty choice is passed on for the config to refuse.
    """
    outside = ticked - {module.name for module in _selected(modules, _every_module(adapter, modules))}
    values: dict[str, object] = {}
    if outside:  # the layer range would hide these ticks: it is opened
        values = {"adapter.first_layer": 0, "adapter.last_layer": None}
        adapter = adapter.model_copy(update={"first_layer": 0, "last_layer": None})
    for preset in TARGET_PRESETS:
        if _names(modules, adapter.model_copy(update={"target_modules": preset})) == ticked:
            return values | {"adapter.target_modules": preset}
    kinds = tuple(kind for kind, members in group_modules(modules).items()
                  if any(member.name in ticked for member in members))
    if kinds and _names(modules, adapter.model_copy(update={"target_modules": kinds})) == ticked:
        return values | {"adapter.target_modules": kinds}
    return values | {"adapter.target_modules": tuple(module.name for module in modules if module.name in ticked)}


def _every_module(adapter: TargetedConfig, modules: Sequence[ModuleInfo]) -> TargetedConfig:
    return adapter.model_copy(update={"target_modules": tuple(module.name for module in modules)})


def _names(modules: Sequence[ModuleInfo], adapter: TargetedConfig) -> set[str]:
    return {module.name for module in _selected(modules, adapter)}


def _selected(modules: Sequence[ModuleInfo], adapter: TargetedConfig) -> list[ModuleInfo]:
    try:
        return select_targets(modules, adapter)
    except AdapterError:
        return []
