"""One row of a dataset, shown twice: as bubbles and as tokens. Foreign text is painted, never parsed."""

import math
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt
from PySide6.QtGui import (
    QAction,
    QColor,
    QFontMetricsF,
    QGuiApplication,
    QPainter,
    QPaintEvent,
    QPen,
    QResizeEvent,
    QTextLayout,
    QTextOption,
)
from PySide6.QtWidgets import QAbstractScrollArea, QFrame, QHBoxLayout, QSizePolicy, QVBoxLayout, QWidget

from app import theme
from app.scrolling import scrolled
from app.widgets import clear_layout, label
from core.records import Message, Token

LARGEST_TEXT = 20_000  # characters of one message that are shown
LARGEST_ROW = 8_000  # tokens of one row that are shown
ROLE_WORDS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool", "text": "Text"}


class Bubble(QFrame):
    """One message. What is trained has a coloured edge and says so."""

    def __init__(self, message: Message) -> None:
        super().__init__()
        self._trained = message.trained
        role = ROLE_WORDS.get(message.role, message.role)
        head = label(f"{role} · trained" if message.trained else role, "help")
        content = message.content
        if len(content) > LARGEST_TEXT:
            content = content[:LARGEST_TEXT] + " …"
        text = WrappedText(content or "(empty)")
        self.setAccessibleName(f"{head.text()}: {content[:200]}")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 8, 12, 10)
        layout.setSpacing(2)
        layout.addWidget(head)
        layout.addWidget(text)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """A rounded surface, with an accent edge where it is trained."""
        colors = theme.colors()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(colors.accent_soft if self._trained else colors.window))
        box = QRectF(self.rect())
        painter.drawRoundedRect(box, 8, 8)
        if self._trained:
            painter.setBrush(QColor(colors.accent))
            painter.drawRoundedRect(QRectF(0, 8, 4, box.height() - 16), 2, 2)


class WrappedText(QWidget):
    """Plain text that may be broken inside words, so that no long word widens the page; Copy by the menu key."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self.setAccessibleName(text[:2000])
        policy = QSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        copy = QAction("Copy", self)
        copy.triggered.connect(lambda: QGuiApplication.clipboard().setText(self._text))
        self.addAction(copy)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)

    def heightForWidth(self, width: int) -> int:  # noqa: N802
        """The height that the broken text needs."""
        layout = self._lay_out(width)
        return math.ceil(layout.boundingRect().height())

    def sizeHint(self) -> QSize:  # noqa: N802
        """As wide as there is space."""
        return QSize(200, self.heightForWidth(max(self.width(), 200)))

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """One line, whatever the words."""
        return QSize(60, self.fontMetrics().height())

    def _lay_out(self, width: int) -> QTextLayout:
        layout = QTextLayout(self._text.replace("\n", "\u2028"), self.font())
        layout.setTextOption(_wrapping())
        layout.beginLayout()
        height = 0.0
        while (line := layout.createLine()).isValid():
            line.setLineWidth(max(width, 1))
            line.setPosition(QPointF(0, height))
            height += line.height()
        layout.endLayout()
        return layout

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Paint the text."""
        painter = QPainter(self)
        painter.setPen(QColor(theme.colors().text))
        self._lay_out(self.width()).draw(painter, QPointF(0, 0))


def _wrapping() -> QTextOption:
    option = QTextOption()
    option.setWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
    return option


class BubbleView(QWidget):
    """A row as a conversation."""

    def __init__(self) -> None:
        super().__init__()
        content = QWidget()
        self._column = QVBoxLayout(content)
        self._column.setContentsMargins(0, 0, theme.GRID, 0)
        self._column.setSpacing(theme.GRID)
        self._area = scrolled(content)
        self._area.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self._area.setAccessibleName("The row as a conversation")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._area)

    def show_messages(self, messages: tuple[Message, ...]) -> None:
        """Show a row's messages from its beginning."""
        clear_layout(self._column)
        for message in messages:
            line = QHBoxLayout()
            line.setContentsMargins(0, 0, 0, 0)
            indent = 32
            if message.role == "user":  # what the person says stands a little to the right
                line.addSpacing(indent)
            line.addWidget(Bubble(message), 1)
            if message.role in ("assistant", "tool"):
                line.addSpacing(indent)
            self._column.addLayout(line)
        self._column.addStretch(1)
        self._area.verticalScrollBar().setValue(0)


@dataclass(frozen=True)
class _Box:
    area: QRectF
    text: str
    token: Token


class TokenView(QAbstractScrollArea):
    """A row as tokens in lines: trained on an accent ground, special outlined, the others plain."""

    PADDING = 2.0

    def __init__(self) -> None:
        super().__init__()
        self._tokens: tuple[Token, ...] = ()
        self._boxes: list[_Box] = []
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName("The row as tokens")
        self.viewport().setAutoFillBackground(False)

    def show_tokens(self, tokens: tuple[Token, ...]) -> None:
        """Show a row's tokens from its beginning."""
        self._tokens = tokens[:LARGEST_ROW]
        trained = sum(token.trained for token in tokens)
        self.setAccessibleDescription(f"{len(tokens)} tokens, {trained} trained")
        self.verticalScrollBar().setValue(0)
        self._arrange()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Room for some lines."""
        return QSize(320, 160)

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Break the lines anew."""
        super().resizeEvent(event)
        self._arrange()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        """Repaint in the colours of a new scheme."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self.viewport().update()

    def _arrange(self) -> None:
        metrics = QFontMetricsF(theme.font("mono"))
        height = metrics.height() + 2 * self.PADDING
        width = self.viewport().width() - 4.0
        x = y = 2.0
        self._boxes = []
        for token in self._tokens:
            text = visible(token.text)
            wide = max(metrics.horizontalAdvance(text), 4.0) + 2 * self.PADDING
            if x > 2.0 and x + wide > width:
                x, y = 2.0, y + height + 2
            text = metrics.elidedText(text, Qt.TextElideMode.ElideRight, width - 2 * self.PADDING)
            self._boxes.append(_Box(QRectF(x, y, min(wide, width), height), text, token))
            x += wide + 1
            if "\n" in token.text:
                x, y = 2.0, y + height + 2
        bottom = self._boxes[-1].area.bottom() + 2 if self._boxes else 0.0
        bar = self.verticalScrollBar()
        bar.setPageStep(self.viewport().height())
        bar.setSingleStep(round(height))
        bar.setRange(0, max(0, round(bottom) - self.viewport().height()))
        self.viewport().update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Paint the boxes that can be seen."""
        colors = theme.colors()
        painter = QPainter(self.viewport())
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(theme.font("mono"))
        offset = self.verticalScrollBar().value()
        painter.translate(0, -offset)
        seen = QRectF(0, offset, self.viewport().width(), self.viewport().height())
        for box in self._boxes:
            if not box.area.intersects(seen):
                continue
            if box.token.trained:
                painter.setPen(Qt.PenStyle.NoPen)
                painter.setBrush(QColor(colors.accent_soft))
                painter.drawRoundedRect(box.area, 3, 3)
            if box.token.special:
                painter.setPen(QPen(QColor(colors.accent if box.token.trained else colors.dim_text), 1))
                painter.setBrush(Qt.BrushStyle.NoBrush)
                painter.drawRoundedRect(box.area.adjusted(0.5, 0.5, -0.5, -0.5), 3, 3)
            painter.setPen(QColor(colors.text if box.token.trained else colors.dim_text))
            painter.drawText(box.area, Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextSingleLine, box.text)


class TokenLegend(QWidget):
    """What the looks of tokens mean, in words."""

    def __init__(self) -> None:
        super().__init__()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(6)
        for words, trained, special in (("trained", True, False), ("not trained", False, False),
                                        ("special", False, True)):
            layout.addWidget(_Sample(trained, special))
            layout.addWidget(label(words, "help"))
            layout.addSpacing(theme.GRID)
        layout.addStretch(1)


class _Sample(QWidget):
    def __init__(self, trained: bool, special: bool) -> None:
        super().__init__()
        self._trained, self._special = trained, special
        self.setFixedSize(22, 16)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        colors = theme.colors()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QColor(colors.dim_text) if self._special else Qt.PenStyle.NoPen)
        painter.setBrush(QColor(colors.accent_soft) if self._trained else Qt.BrushStyle.NoBrush)
        box = QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5)
        if self._trained or self._special:
            painter.drawRoundedRect(box, 3, 3)
        painter.setPen(QColor(colors.text if self._trained else colors.dim_text))
        painter.setFont(theme.font("mono"))
        painter.drawText(box, Qt.AlignmentFlag.AlignCenter, "ab")


def visible(text: str) -> str:
    """A token's text with spaces and line ends made visible."""
    return text.replace(" ", "·").replace("\r", "").replace("\n", "↵").replace("\t", "⇥")
