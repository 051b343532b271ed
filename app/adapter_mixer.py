"""The adapters that answer together in the chat: which count, and how strongly."""

from PySide6.QtCore import QSignalBlocker, Qt, Signal, Slot
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QCheckBox, QDoubleSpinBox, QFrame, QHBoxLayout, QSlider, QVBoxLayout, QWidget

from app import theme
from app.ingredients import Ingredient
from app.widgets import ElidedLabel, button, clear_layout, label, plain_tip, spin_margin
from core.jobs import AdapterUse

LOWEST, HIGHEST = -1.0, 2.0  # of a strength
_STEPS = 100  # of the slider for a strength of 1
_SLIDER_WIDTH = 140  # pixels
_NARROW = 480  # pixels of a row
_STRENGTH_TIP = "1: as it was trained. 0: not at all. Above 1: stronger. Below 0: the opposite of what it learned."


class AdapterRow(QFrame):
    """One adapter: a tick, its name, its strength as a slider and as a number; where nothing in it has a strength, the
    tick alone is the switch, and a few words say so.

    Signals: `changed()` by the person; `removed()`.
    """

    changed = Signal()
    removed = Signal()

    def __init__(self, ingredient: Ingredient, *, removable: bool) -> None:
        super().__init__()
        self.ingredient = ingredient
        self.tick = QCheckBox()
        self.tick.setChecked(True)
        self.tick.setAccessibleName(f"Use {ingredient.name}")
        self.tick.setToolTip(plain_tip("Whether this adapter takes part; acts on the next word."))
        self.name = ElidedLabel(ingredient.name, "body", Qt.TextElideMode.ElideMiddle)
        self.note = label(_note(ingredient), "help")
        self.slider, self.box = self._make_strength(ingredient)
        self.remove_button = button("", self.removed.emit, icon="x", tip="Take this adapter away")
        self.remove_button.setAccessibleName(f"Remove {ingredient.name}")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(theme.GRID)
        layout.addWidget(self.tick)
        layout.addWidget(self.name, 1)
        for widget in (self.note, self.slider, self.box, self.remove_button):
            layout.addWidget(widget)
        keep = self.remove_button.sizePolicy()
        keep.setRetainSizeWhenHidden(True)  # so that the sliders stand below each other
        self.remove_button.setSizePolicy(keep)
        self.remove_button.setVisible(removable)
        self._show(1.0)
        self.tick.setEnabled(not ingredient.whole)
        self.tick.setVisible(not ingredient.whole)  # there is nothing to switch
        for part in (self.slider, self.box):
            part.setVisible(ingredient.has_strength)
        self.tick.toggled.connect(self._ticked)
        self.slider.valueChanged.connect(lambda position: self._moved(position / _STEPS))
        self.box.valueChanged.connect(self._moved)

    def _make_strength(self, ingredient: Ingredient) -> tuple[QSlider, QDoubleSpinBox]:
        slider, box = QSlider(Qt.Orientation.Horizontal), QDoubleSpinBox()
        slider.setRange(round(LOWEST * _STEPS), round(HIGHEST * _STEPS))
        slider.setPageStep(_STEPS // 10)
        slider.setFixedWidth(_SLIDER_WIDTH)
        slider.setAccessibleName(f"Strength of {ingredient.name}")
        box.setRange(LOWEST, HIGHEST)
        box.setSingleStep(0.05)
        box.setDecimals(2)
        box.setFixedWidth(72)
        box.setAccessibleName(f"Strength of {ingredient.name} as a number")
        spin_margin(box)
        for widget in (slider, box, self.note):
            widget.setToolTip(plain_tip(_tip(ingredient)))
            widget.setAccessibleDescription(_tip(ingredient))
        return slider, box

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 -- Qt's name
        """Where there is little room it is the name's."""
        super().resizeEvent(event)
        if self.ingredient.has_strength:
            narrow = self.width() < _NARROW
            self.note.setVisible(not narrow)
            self.slider.setFixedWidth(_SLIDER_WIDTH * 3 // 4 if narrow else _SLIDER_WIDTH)

    @property
    def strength(self) -> float:
        """What counts now: 0 where it is not ticked."""
        return self.box.value() if self.tick.isChecked() else 0.0

    @property
    def use(self) -> AdapterUse:
        """The adapter with its strength."""
        return AdapterUse(self.ingredient.path, self.strength)

    def _show(self, value: float) -> None:
        with QSignalBlocker(self.slider), QSignalBlocker(self.box):
            self.slider.setValue(round(value * _STEPS))
            self.box.setValue(value)

    @Slot(float)
    def _moved(self, value: float) -> None:
        self._show(value)
        self.changed.emit()

    @Slot(bool)
    def _ticked(self, ticked: bool) -> None:
        self.slider.setEnabled(ticked)
        self.box.setEnabled(ticked)
        self.changed.emit()


def _note(ingredient: Ingredient) -> str:
    if ingredient.whole:
        return "A whole model, without strength"
    if ingredient.only_beside:
        return "On or off, without strength"
    return "Strength"


def _tip(ingredient: Ingredient) -> str:
    if ingredient.whole:
        return "Full fine-tuning left a whole model: it answers alone, as it was trained."
    if ingredient.only_beside:
        return f"There is no strength for {ingredient.beside_words}: the tick switches on or off."
    beside = f"\nActs on the low-rank updates alone: on or off, whatever the strength, is {ingredient.beside_words}." \
        if ingredient.beside else ""
    return _STRENGTH_TIP + beside


class AdapterMixer(QWidget):
    """The rows of all adapters; the first belongs to the run that is chosen, if any.

    Signals: `changed()` when a strength or a tick changed; `listed()` when an adapter came or went.
    """

    changed = Signal()
    listed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[AdapterRow] = []
        self._first: AdapterRow | None = None  # of the chosen run
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(theme.GRID // 2)
        self.hide()

    def set_first(self, ingredient: Ingredient | None, *, keep_others: bool) -> None:
        """Put the adapter of the chosen run in front; the others stay where they belong to the same base."""
        kept = [row.ingredient for row in self.rows if row is not self._first] if keep_others else []
        strengths = {row.ingredient.path: (row.box.value(), row.tick.isChecked()) for row in self.rows}
        clear_layout(self._layout)
        self.rows, self._first = [], None
        if ingredient is not None:
            self._first = self._append(ingredient, removable=False)
        for other in kept:
            if ingredient is None or other.path != ingredient.path:
                row = self._append(other, removable=True)
                value, ticked = strengths[other.path]
                row.box.setValue(value)
                row.tick.setChecked(ticked)
        self._tell()

    def add(self, ingredient: Ingredient) -> bool:
        """Add an adapter with strength 1. False if it is in the list already."""
        if any(row.ingredient.path == ingredient.path for row in self.rows):
            return False
        self._append(ingredient, removable=True)
        self._tell()
        return True

    @property
    def mixable(self) -> bool:
        """False where a whole model answers: nothing can be added to it."""
        return not any(row.ingredient.whole for row in self.rows)

    def unmixed_words(self) -> str:
        """Why what counts now can not be written as one adapter; "" where nothing speaks against it."""
        told = (f"{row.ingredient.name} can not be mixed: {row.ingredient.beside_words} can not be added up."
                for row in self.active() if row.ingredient.beside)
        return next(told, "")

    def active(self) -> list[AdapterRow]:
        """The adapters that count now."""
        return [row for row in self.rows if row.strength]

    def uses(self) -> tuple[AdapterUse, ...]:
        """All adapters of the list with what counts of them now."""
        return tuple(row.use for row in self.rows)

    def strengths_of(self, uses: tuple[AdapterUse, ...]) -> tuple[float, ...]:
        """What counts now of the adapters that were asked; 0 of one that was taken away meanwhile."""
        now = {row.ingredient.path: row.strength for row in self.rows}
        return tuple(now.get(use.path, 0.0) for use in uses)

    def words(self) -> str:
        """The adapters that count, for the head of the answers."""
        active = [(row.ingredient.name, row.strength) for row in self.active()]
        if len(active) == 1 and active[0][1] == 1.0:
            return active[0][0]
        return " + ".join(f"{strength:g} · {name}" for name, strength in active) or "no adapter counts: as Base"

    def _append(self, ingredient: Ingredient, *, removable: bool) -> AdapterRow:
        row = AdapterRow(ingredient, removable=removable)
        row.changed.connect(self.changed)
        row.removed.connect(lambda: self._remove(row))
        self.rows.append(row)
        self._layout.addWidget(row)
        return row

    def _remove(self, row: AdapterRow) -> None:
        self.rows.remove(row)
        self._layout.removeWidget(row)
        row.hide()
        row.deleteLater()
        self._tell()

    def _tell(self) -> None:
        self.setVisible(bool(self.rows))
        self.listed.emit()
