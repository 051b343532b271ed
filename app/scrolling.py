"""Content that scrolls up and down only, and can be led to."""

from PySide6.QtCore import QEvent, QObject, QSize, Qt, QTimer
from PySide6.QtWidgets import QFrame, QScrollArea, QWidget
from shiboken6 import isValid

from app import theme

_AROUND = 4 * theme.GRID  # pixels that stay in sight around what is led to


class _FittingArea(QScrollArea):
    """As wide as its content and the scroll bar need, also when the content changes, and, where there is room, at
    least so many pixels."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self._least = least

    def minimumSizeHint(self) -> QSize:  # noqa: N802 -- Qt's name
        """The content's least width; any height, as that is scrolled."""
        return QSize(self._needed(), super().minimumSizeHint().height())

    def sizeHint(self) -> QSize:  # noqa: N802
        """The width that is asked for, and the content's height."""
        return QSize(max(self._least, self._needed()), super().sizeHint().height())

    def _needed(self) -> int:
        content = self.widget()
        inside = content.minimumSizeHint().width() if content is not None else 0
        return inside + self.verticalScrollBar().sizeHint().width()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """What the content needs has changed: so has what this needs."""
        if event.type() == QEvent.Type.LayoutRequest and watched is self.widget():
            self.updateGeometry()
        return super().eventFilter(watched, event)


def scrolled(content: QWidget, *, fitting: int = 0) -> QScrollArea:
    """`content` in a frameless area that scrolls up and down only.

    With `fitting` it is as wide as the content needs, and so many pixels where there is room.
    """
    area = _FittingArea(fitting) if fitting else QScrollArea()
    area.setWidgetResizable(True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    theme.set_role(content, "scrolled")
    area.setWidget(content)
    area.viewport().setAutoFillBackground(False)
    return area


def reveal(widget: QWidget) -> None:
    """Scroll to a widget, once what was just unfolded has its place."""
    area = widget.parentWidget()
    while area is not None and not isinstance(area, QScrollArea):
        area = area.parentWidget()
    if isinstance(area, QScrollArea):
        found = area

        def scroll() -> None:
            if isValid(found) and isValid(widget):
                found.ensureWidgetVisible(widget, 0, _AROUND)

        QTimer.singleShot(0, found, scroll)
