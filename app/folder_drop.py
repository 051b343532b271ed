"""Lets a folder be dropped on a widget."""

from pathlib import Path

from PySide6.QtCore import QEvent, QMimeData, QObject, Signal
from PySide6.QtGui import QDropEvent
from PySide6.QtWidgets import QWidget


class FolderDrop(QObject):
    """Signals: `dropped(Path)`: the person dropped one folder of this machine on the widget."""

    dropped = Signal(object)

    def __init__(self, widget: QWidget) -> None:
        super().__init__(widget)
        widget.setAcceptDrops(True)
        widget.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802 -- Qt's name
        """Take a folder; everything else goes its way."""
        if isinstance(event, QDropEvent):  # entering and moving are such events too
            folder = folder_in(event.mimeData())
            if folder is not None:
                event.acceptProposedAction()
                if event.type() == QEvent.Type.Drop:
                    self.dropped.emit(folder)
                return True
        return super().eventFilter(watched, event)


def folder_in(data: QMimeData) -> Path | None:
    """The one local folder that is dragged; None for anything else."""
    urls = data.urls()
    path = Path(urls[0].toLocalFile()) if len(urls) == 1 and urls[0].isLocalFile() else None
    return path if path is not None and path.is_dir() else None
