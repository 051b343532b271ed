"""A message of the chat: plain text that grows, can be selected, and can have parts marked."""

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QSize, Qt
from PySide6.QtGui import QColor, QResizeEvent, QTextCharFormat, QTextCursor, QTextOption, QWheelEvent
from PySide6.QtWidgets import QFrame, QPlainTextEdit, QSizePolicy, QTextEdit, QVBoxLayout, QWidget

from app import theme
from app.text_difference import Span

_PADDING = 8  # pixels between a bubble's edge and its text


class Bubble(QFrame):
    """A message: plain text that wraps anywhere, can be selected, and takes the height it needs."""

    def __init__(self, text: str = "", *, mine: bool = False) -> None:
        super().__init__()
        theme.set_role(self, "bubble-mine" if mine else "bubble")
        self._text = _GrowingText(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._text)
        self.append(text)

    def append(self, text: str) -> None:
        """Add text at the end."""
        if text:
            cursor = QTextCursor(self._text.document())
            cursor.movePosition(QTextCursor.MoveOperation.End)
            cursor.insertText(text)
            self._text.fit()

    @property
    def text(self) -> str:
        """All of it."""
        return self._text.toPlainText()

    @property
    def marks(self) -> list[str]:
        """The texts that are marked."""
        return [one.cursor.selectedText() for one in self._text.extraSelections()]  # type: ignore[attr-defined]

    def mark(self, spans: Sequence[Span]) -> None:
        """Underline these parts on a coloured ground; none takes all marks away."""
        self._text.mark(spans)


class _GrowingText(QPlainTextEdit):
    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setReadOnly(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.setFont(theme.font("body"))
        self.document().setDocumentMargin(_PADDING)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        theme.set_role(self, "bubble-text")
        self._marked: list[Span] = []

    def mark(self, spans: Sequence[Span]) -> None:
        self._marked = list(spans)
        style = QTextCharFormat()
        style.setBackground(QColor(theme.colors().accent_soft))
        style.setUnderlineColor(QColor(theme.colors().accent))
        style.setUnderlineStyle(QTextCharFormat.UnderlineStyle.SingleUnderline)  # not by colour alone
        text, selections = self.toPlainText(), []
        for first, end in spans:
            cursor = QTextCursor(self.document())
            cursor.setPosition(_utf16(text[:first]))
            cursor.setPosition(_utf16(text[:end]), QTextCursor.MoveMode.KeepAnchor)
            selection = QTextEdit.ExtraSelection()
            selection.cursor, selection.format = cursor, style  # type: ignore[attr-defined]
            selections.append(selection)
        self.setExtraSelections(selections)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 -- Qt's name
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and getattr(self, "_marked", None):
            self.mark(self._marked)

    def fit(self) -> None:
        """Take the height of the text: a plain document measures itself in lines."""
        lines = max(1, round(self.document().size().height()))
        self.setFixedHeight(lines * self.fontMetrics().lineSpacing() + 2 * _PADDING + 4)
        self.updateGeometry()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        super().resizeEvent(event)
        self.fit()

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        event.ignore()  # the column scrolls, not the bubble

    def natural_width(self) -> int:
        """The width of the longest line, if nothing had to wrap."""
        metrics = self.fontMetrics()
        widest = max((metrics.horizontalAdvance(one) for one in self.toPlainText().split("\n")), default=0)
        return widest + 2 * _PADDING + 6

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(self.natural_width(), self.height())


def _utf16(text: str) -> int:
    """How many places Qt counts for a text: a character outside the basic plane is two."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
