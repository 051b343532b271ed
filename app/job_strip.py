"""A strip for a short job that takes its time: what it does, how far it is, Cancel."""

from PySide6.QtWidgets import QHBoxLayout, QProgressBar, QVBoxLayout

from app import figures, theme
from app.operations import Operation
from app.widgets import Card, ElidedLabel, button
from core.events import Progress


class JobStrip(Card):
    """Hidden until `follow` or `show_progress`; hides itself at the end of the operation."""

    def __init__(self) -> None:
        super().__init__()
        self._operation: Operation | None = None
        self._caption = ""
        self.text = ElidedLabel("")
        self.detail = ElidedLabel("", "help")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName("Progress")
        self.cancel_button = button("Cancel", self._cancel)
        left = QVBoxLayout()
        left.setSpacing(6)
        for widget in (self.text, self.detail, self.bar):
            left.addWidget(widget)
        line = QHBoxLayout()
        line.setSpacing(theme.CARD_GAP)
        line.addLayout(left, 1)
        line.addWidget(self.cancel_button)
        self.body.addLayout(line)
        self.body.setContentsMargins(12, 8, 12, 8)
        self.hide()

    @property
    def busy(self) -> bool:
        """True while an operation is followed."""
        return self._operation is not None

    def follow(self, operation: Operation, caption: str) -> None:
        """Show this operation from now to its end. `caption` is what it does, for people."""
        self._operation = operation
        self._caption = caption
        operation.on(Progress, self._progress)
        operation.ended.connect(self._ended)
        self.cancel_button.setVisible(True)
        self.cancel_button.setEnabled(True)
        self._show("Waiting for the engine…", 0, 0)

    def show_progress(self, caption: str, progress: Progress | None) -> None:
        """Show progress of something that can not be cancelled here; None hides the strip."""
        if self._operation is not None:
            return
        self.setVisible(progress is not None)
        if progress is not None:
            self.cancel_button.setVisible(False)
            self._caption = caption
            self._progress(progress)

    def _progress(self, progress: Progress) -> None:
        # the amount first: a long file name may be cut off, the amount not
        parts = [figures.amount_done(progress.done, progress.total, progress.unit), progress.stage]
        self._show(" · ".join(part for part in parts if part), progress.done, progress.total)

    def _show(self, detail: str, done: int, total: int) -> None:
        self.text.set_text(self._caption)
        self.detail.set_text(detail)
        self.bar.setRange(0, 1000 if total else 0)  # without a total it only moves
        if total:
            self.bar.setValue(round(1000 * done / total))
        self.show()

    def _cancel(self) -> None:
        if self._operation is not None:
            self.cancel_button.setEnabled(False)
            self.detail.set_text("Cancelling…")
            self._operation.cancel()

    def _ended(self) -> None:
        self._operation = None
        self.hide()
