"""How the window is laid out: side bar, bar above, pages, line below."""

from PySide6.QtWidgets import QHBoxLayout, QStackedWidget, QVBoxLayout, QWidget

from app.bars import StatusLine, TopBar
from app.sidebar import Sidebar
from app.widgets import line


def make_frame(sidebar: Sidebar, top: TopBar, pages: QStackedWidget, status: StatusLine) -> QWidget:
    """The window's central widget around its parts."""
    right = QVBoxLayout()
    right.setContentsMargins(0, 0, 0, 0)
    right.setSpacing(0)
    for widget in (top, line()):
        right.addWidget(widget)
    right.addWidget(pages, 1)
    for widget in (line(), status):
        right.addWidget(widget)
    frame = QWidget()
    whole = QHBoxLayout(frame)
    whole.setContentsMargins(0, 0, 0, 0)
    whole.setSpacing(0)
    whole.addWidget(sidebar)
    whole.addLayout(right, 1)
    return frame
