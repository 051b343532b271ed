"""The settings of one run that are not the defaults, or of several runs what differs between them: only that."""

from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QStackedLayout, QTableWidget, QTableWidgetItem

from app.widgets import Card, label, plain_tip
from core.config import RunConfig
from core.runs.history import config_difference


def differing_fields(configs: list[RunConfig]) -> list[tuple[str, list[Any]]]:
    """(dotted path, the value of each config) for every field in which not all agree, in the config's order."""
    paths: list[str] = []
    for other in configs[1:]:
        paths += [path for path, _, _ in config_difference(configs[0], other) if path not in paths]
    return [(path, [_value(config, path) for config in configs]) for path in paths]


def field_title(config: RunConfig, path: str) -> str:
    """The title that the config gives a field; its path where it has none."""
    section, _, name = path.partition(".")
    model = getattr(config, section, None)
    field = type(model).model_fields.get(name) if model is not None else None  # type: ignore[union-attr]
    return field.title if field is not None and field.title else path


def value_text(value: Any) -> str:
    """A setting in words."""
    if value is None:
        return "—"
    if isinstance(value, tuple | list):
        return ", ".join(value_text(one) for one in value)
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return Path(text).name if "/" in text or "\\" in text else text


def _value(config: RunConfig, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


class DifferencePanel(Card):
    """A small table: one line for each field that is told, one column for each run."""

    def __init__(self) -> None:
        super().__init__("Settings")
        self.table = QTableWidget()
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.table.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.table.setShowGrid(False)
        self.table.setWordWrap(False)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(26)
        self.table.setAccessibleName("Settings of the ticked runs")
        self._words = label("", "help", wrap=True)
        self._words.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._stack = QStackedLayout()
        self._stack.addWidget(self._words)
        self._stack.addWidget(self.table)
        self.body.addLayout(self._stack, 1)
        self.setMinimumWidth(176)
        self.show_configs([])

    def show_configs(self, runs: list[tuple[str, RunConfig]]) -> None:
        """Show one run's settings, or compare several; they are given with their names."""
        if not runs:
            self._tell("Tick a run to see its settings; of several those are shown in which they differ.")
            return
        if len(runs) == 1:
            fields = [(path, values[1:]) for path, values in differing_fields([RunConfig(), runs[0][1]])]
        else:
            fields = differing_fields([config for _, config in runs])
        if not fields:
            self._tell("These runs have the same settings." if len(runs) > 1 else "Everything is as it is by default.")
            return
        self.table.setColumnCount(1 + len(runs))
        self.table.setRowCount(len(fields))
        self.table.setHorizontalHeaderLabels(["Setting", *(name for name, _ in runs)])
        for column, (name, _) in enumerate(runs, 1):
            item = self.table.horizontalHeaderItem(column)
            if item is not None:
                item.setToolTip(plain_tip(name))
        for row, (path, values) in enumerate(fields):
            self._put(row, 0, field_title(runs[0][1], path), path)
            for column, value in enumerate(values, 1):
                self._put(row, column, value_text(value), str(value))
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setMaximumSectionSize(180)
        header.setStretchLastSection(True)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        self._stack.setCurrentIndex(1)

    def rows(self) -> list[list[str]]:
        """The table as texts; empty where there is only a sentence."""
        if self._stack.currentIndex() == 0:
            return []
        cells = [[self.table.item(row, column) for column in range(self.table.columnCount())]
                 for row in range(self.table.rowCount())]
        return [[cell.text() if cell else "" for cell in row] for row in cells]

    def _tell(self, text: str) -> None:
        self._words.setText(text)
        self._stack.setCurrentIndex(0)

    def _put(self, row: int, column: int, text: str, tip: str) -> None:
        item = QTableWidgetItem(text)
        item.setToolTip(plain_tip(tip))
        self.table.setItem(row, column, item)
