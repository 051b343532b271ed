"""Which programs read an adapter right: one line for each, in the form that is chosen."""

from collections.abc import Sequence

from PySide6.QtCore import Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QGridLayout, QWidget

from app import theme
from app.widgets import IconLabel, clear_layout, label
from core.records import LoaderVerdict

_LOOKS = {"exactly": ("check-circle", "good_text"), "wrongly": ("warning", "warning_text"),
          "refuses": ("x-circle", "danger_text")}
_WORDS = {"exactly": "reads it exactly", "wrongly": "reads it wrongly", "refuses": "refuses it"}


class LoaderTable(QWidget):
    """A sign, the program, what it makes of the adapter, and why."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(theme.GRID)
        self._grid.setVerticalSpacing(6)
        self._grid.setColumnStretch(3, 1)
        self.lines: list[str] = []

    def show_verdicts(self, verdicts: Sequence[LoaderVerdict]) -> None:
        """Show these lines; none hides the table."""
        clear_layout(self._grid)
        self.lines = [f"{one.loader} {_WORDS[one.reads]}. {one.why}".strip() for one in verdicts]
        for line, verdict in enumerate(verdicts):
            sign, role = _LOOKS[verdict.reads]
            parts = (IconLabel(sign, 16, role), label(verdict.loader, "strong"), label(_WORDS[verdict.reads]),
                     label(verdict.why, "help", wrap=True))
            for place, part in enumerate(parts):
                self._grid.addWidget(part, line, place, Qt.AlignmentFlag.AlignTop)
                part.ensurePolished()  # the sheet gives it its font, and with it its height
        self.setAccessibleName("\n".join(self.lines))
        self.setVisible(bool(verdicts))
        self._take_height()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 -- Qt's name
        """Narrower sentences need more lines; a form layout does not ask for that by itself."""
        super().resizeEvent(event)
        self._take_height()

    def _take_height(self) -> None:
        needed = self._grid.heightForWidth(self.width()) if self.lines else 0
        if needed != self.minimumHeight():
            self.setMinimumHeight(max(0, needed))
            self._grid.invalidate()  # the lines were laid out for the height before, and Qt leaves them there
            self._grid.activate()
