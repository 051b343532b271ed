"""The list of models on this machine: name, size, origin and state of each, with a search field."""

from pathlib import Path

from PySide6.QtCore import QEvent, QModelIndex, QPersistentModelIndex, QRect, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFont, QPainter
from PySide6.QtWidgets import (
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from app import theme
from app.widgets import label, plain_tip
from core.records import ModelEntry
from core.words import size

_ENTRY = Qt.ItemDataRole.UserRole
_ROW_HEIGHT = 52
ORIGIN_WORDS = {"starter": "comes along", "folder": "folder on this machine"}


class ModelList(QWidget):
    """`chosen(str)` is emitted with what ModelConfig.path shall hold."""

    chosen = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search models")
        self.search.setAccessibleName("Search models")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(lambda _text: self._filter())
        self.list = QListWidget()
        self.list.setAccessibleName("Models on this machine")
        self.list.setItemDelegate(_EntryDelegate(self.list))
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setMouseTracking(True)
        self.list.itemClicked.connect(self._picked)
        self.list.itemActivated.connect(self._picked)
        theme.set_role(self.list, "plain")
        self.nothing = label("No model has this name.", "help")
        self.nothing.hide()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(theme.GRID)
        layout.addWidget(self.search)
        layout.addWidget(self.nothing)
        layout.addWidget(self.list, 1)

    def show_entries(self, entries: tuple[ModelEntry, ...], current: str) -> None:
        """Show these models, and folders that were chosen besides; `current` is the chosen one."""
        known = {str(entry.path) for entry in entries}
        folders = [entry for item in self._items()
                   if (entry := item.data(_ENTRY)).origin == "folder" and str(entry.path) not in known]
        self.list.clear()
        for entry in (*entries, *folders):
            self._add(entry)
        self.mark(current)

    def _add(self, entry: ModelEntry) -> None:
        item = QListWidgetItem()
        item.setData(_ENTRY, entry)
        item.setData(Qt.ItemDataRole.AccessibleTextRole, f"{title(entry)}, {facts(entry)}")
        item.setToolTip(plain_tip(f"{entry.path}\n{entry.reason}".strip()))
        item.setSizeHint(QSize(0, _ROW_HEIGHT))
        if entry.state == "refused":
            item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEnabled)
        self.list.addItem(item)

    def mark(self, current: str) -> None:
        """Select the chosen model; a folder that is not in the list comes into it."""
        if current and self.entry(current) is None and Path(current).is_dir():
            self._add(ModelEntry(current, Path(current), "folder", 0, "ready"))
        self._filter()
        self.list.clearSelection()
        for item in self._items():
            entry: ModelEntry = item.data(_ENTRY)
            if current and current in (entry.name, str(entry.path)):
                self.list.setCurrentItem(item)
                item.setSelected(True)

    def entry(self, model: str) -> ModelEntry | None:
        """The entry of this name or path."""
        found = (item.data(_ENTRY) for item in self._items())
        return next((entry for entry in found if model in (entry.name, str(entry.path))), None)

    def _items(self) -> list[QListWidgetItem]:
        return [item for number in range(self.list.count()) if (item := self.list.item(number)) is not None]

    def _filter(self) -> None:
        wanted = self.search.text().strip().casefold()
        for item in self._items():
            entry: ModelEntry = item.data(_ENTRY)
            item.setHidden(wanted not in f"{title(entry)} {entry.name} {entry.path}".casefold())
        self.nothing.setVisible(bool(wanted) and all(item.isHidden() for item in self._items()))

    def _picked(self, item: QListWidgetItem) -> None:
        entry: ModelEntry = item.data(_ENTRY)
        if entry.state != "refused":
            self.chosen.emit(entry.name)


def title(entry: ModelEntry) -> str:
    """What the model is called in the list."""
    return Path(entry.path).name if entry.origin in ("starter", "folder") else entry.name


def facts(entry: ModelEntry) -> str:
    """`269 MB · library · ready`; of a folder only that it is one, it was not looked into."""
    origin = ORIGIN_WORDS.get(entry.origin, entry.origin)
    if entry.origin == "folder":
        return origin
    state = f"refused: {entry.reason}" if entry.state == "refused" else entry.state
    return " · ".join([size(entry.bytes), origin, state])


class _EntryDelegate(QStyledItemDelegate):
    """Two lines of plain painted text; the state has a mark besides its words."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem,
              index: QModelIndex | QPersistentModelIndex) -> None:
        entry: ModelEntry = index.data(_ENTRY)
        colors = theme.colors()
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        box: QRect = option.rect.adjusted(0, 1, 0, -1)  # type: ignore[attr-defined]
        state = option.state  # type: ignore[attr-defined]
        if state & QStyle.StateFlag.State_Selected or state & QStyle.StateFlag.State_MouseOver:
            painter.setPen(Qt.PenStyle.NoPen)
            selected = bool(state & QStyle.StateFlag.State_Selected)
            painter.setBrush(QColor(colors.accent_soft if selected else colors.hover))
            painter.drawRoundedRect(box, 6, 6)
        if state & QStyle.StateFlag.State_HasFocus:
            painter.setPen(QColor(colors.accent))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(box.adjusted(0, 0, -1, -1), 6, 6)
        inner = box.adjusted(12, 6, -12, -6)
        refused = entry.state == "refused"
        name, tint = {"ready": ("check-circle", "good_text"), "needs import": ("download-simple", "dim_text"),
                      "refused": ("prohibit", "danger_text")}[entry.state]
        if entry.origin == "folder":
            name, tint = "folder", "dim_text"
        theme.icon(name, tint).paint(painter, QRect(inner.left(), inner.center().y() - 8, 16, 16))
        words = inner.adjusted(28, 0, 0, 0)
        half = words.height() // 2
        self._line(painter, QRect(words.left(), words.top(), words.width(), half), title(entry), theme.font(),
                   colors.disabled_text if refused else colors.text)
        self._line(painter, QRect(words.left(), words.top() + half, words.width(), half), facts(entry),
                   theme.font("help"), colors.danger_text if refused else colors.dim_text)
        painter.restore()

    def _line(self, painter: QPainter, box: QRect, text: str, font: QFont, tint: str) -> None:
        painter.setFont(font)
        painter.setPen(QColor(tint))
        shown = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, box.width())
        painter.drawText(box, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft
                         | Qt.TextFlag.TextSingleLine, shown)

    def editorEvent(self, event: QEvent, *_others: object) -> bool:  # noqa: N802
        """Nothing is edited here."""
        return False
