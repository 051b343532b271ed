"""The pages of the window, each built when it is first needed, and the rest while nobody waits for them."""

from collections.abc import Callable, Mapping
from typing import Protocol, cast

from PySide6.QtCore import QTimer, Signal
from PySide6.QtWidgets import QStackedWidget, QWidget

PREBUILD_MS = 400  # between the pages that are built ahead


class _FieldPage(Protocol):
    def show_field(self, path: str) -> bool: ...


class PageStack(QStackedWidget):
    """One page is in sight.

    Args:
        makers: build a page, by its key, in the order in which they are built ahead.

    Signals: `built(key)`: a page is there now.
    """

    built = Signal(str)

    def __init__(self, makers: Mapping[str, Callable[[], QWidget]]) -> None:
        super().__init__()
        self._makers = makers
        self._pages: dict[str, QWidget] = {}
        self._ahead = QTimer(self)
        self._ahead.setInterval(PREBUILD_MS)
        self._ahead.timeout.connect(self._build_next)

    def page(self, key: str) -> QWidget:
        """A page by its key, built now if it was not yet."""
        if key not in self._pages:
            self._pages[key] = self._makers[key]()
            self.addWidget(self._pages[key])
            self.built.emit(key)
        return self._pages[key]

    def is_built(self, key: str) -> bool:
        """True once somebody has needed the page."""
        return key in self._pages

    def show_page(self, key: str) -> None:
        """Bring a page in sight."""
        self.setCurrentWidget(self.page(key))

    def show_field(self, key: str, field: str) -> None:
        """Give a field on a page of the form the focus."""
        cast(_FieldPage, self.page(key)).show_field(field)

    def build_ahead(self) -> None:
        """Build the missing pages one by one from now on."""
        self._ahead.start()

    def stop_building(self) -> None:
        """Build no more page ahead."""
        self._ahead.stop()

    def _build_next(self) -> None:
        missing = [key for key in self._makers if key not in self._pages]
        if missing:
            self.page(missing[0])
        else:
            self._ahead.stop()
