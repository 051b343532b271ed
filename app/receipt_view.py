"""A receipt on the screen: passed or not, three figures, why, and the answers side by side."""

import math

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QGridLayout, QVBoxLayout, QWidget

from app import figures, theme
from app.figure_row import FigureRow, FigureSpec
from app.scrolling import scrolled
from app.widgets import Card, IconLabel, clear_layout, label, line, row
from core.records import Receipt, ReceiptRow
from core.words import percent

_FIGURES = (
    FigureSpec("difference", "Largest logit difference", "0.000e-00 of 0.0001 allowed",
               "Between base + adapter and what was read back from the disk."),
    FigureSpec("agreement", "Same first choice", "100.00%", "Share of places where both take the same next word."),
    FigureSpec("delta", "Error of the change", "0.000e-00%",
               "How far the change of the weights that arrived in the files is from the adapter's."),
)


class ReceiptView(QWidget):
    """Shows one receipt."""

    def __init__(self) -> None:
        super().__init__()
        self.sign = IconLabel("", 40)
        self.verdict = label("", "title")
        self.path = label("", "help", wrap=True, selectable=True)
        self.figures = FigureRow(_FIGURES)
        self.explanation = label("", wrap=True, selectable=True)
        self._texts = QGridLayout()
        self._texts.setHorizontalSpacing(theme.CARD_GAP)
        self._texts.setVerticalSpacing(theme.GRID)
        content = QWidget()
        inside = QVBoxLayout(content)
        inside.setContentsMargins(0, 0, theme.GRID, 0)
        inside.setSpacing(12)
        inside.addWidget(self.explanation)
        inside.addLayout(self._texts)
        inside.addStretch(1)
        card = Card()
        card.body.addWidget(self.figures)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(12)
        head = QVBoxLayout()
        head.setSpacing(2)
        head.addWidget(self.verdict)
        head.addWidget(self.path)
        top = row(self.sign, head, spacing=12)
        top.setStretch(1, 1)
        layout.addLayout(top)
        layout.addWidget(card)
        layout.addWidget(scrolled(content), 1)

    def show_receipt(self, receipt: Receipt) -> None:
        """Fill everything in; the tick is green only if the receipt has passed."""
        what = "The merged model" if receipt.kind == "merged" else "The adapter"
        if receipt.change_is_rounded_away:
            self.sign.set_icon("warning", "warning")
            self.verdict.setText(f"As written, but {receipt.dtype} lost much of what was learned")
        elif receipt.passed:
            self.sign.set_icon("check-circle", "good")
            self.verdict.setText(f"Passed: {what.lower()} equals what you tried")
        else:
            self.sign.set_icon("x-circle", "danger")
            self.verdict.setText(f"Not passed: {what.lower()} is not what you tried")
        self.path.setText(str(receipt.path))
        compared = math.isfinite(receipt.largest_difference)
        self.figures.show_values(
            difference=f"{_tiny(receipt.largest_difference)} of {receipt.tolerance:g} allowed"
            if compared else "not measured",
            agreement=percent(receipt.first_choice_agreement) if compared else "not measured",
            delta=_share(receipt.realised_delta_error))
        advice = " Export as fp32 to keep the whole change." if receipt.change_is_rounded_away else ""
        self.explanation.setText(receipt.explanation + advice)
        self._show_rows(receipt.rows)

    def _show_rows(self, rows: tuple[ReceiptRow, ...]) -> None:
        clear_layout(self._texts)
        if not rows:
            return
        for column, title in enumerate(("Base + adapter", "Export")):
            self._texts.addWidget(label(title, "strong"), 0, column)
            self._texts.setColumnStretch(column, 1)
        place = 1
        for one in rows:
            same = one.text_adapter == one.text_export
            self._texts.addWidget(line(), place, 0, 1, 2)
            note = "the same words" if same else "other words"
            prompt = label(f"{one.prompt}\n{note} · logits differ by {_tiny(one.largest_difference)} · "
                           f"first choice {percent(one.first_choice_agreement)} the same", "help", wrap=True)
            self._texts.addWidget(prompt, place + 1, 0, 1, 2)
            for column, text in enumerate((one.text_adapter, one.text_export)):
                self._texts.addWidget(_answer(text), place + 2, column)
            place += 3


def _answer(text: str) -> QWidget:
    made = label(text or "(no words)", wrap=True, selectable=True)
    made.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
    return made


def _tiny(value: float) -> str:
    """Two significant digits."""
    return f"{value:.2g}" if 1e-3 <= abs(value) < 100 else figures.number(float(f"{value:.2g}"))


def _share(share: float) -> str:
    """A relative error as percentage; tiny ones in powers of ten."""
    if not math.isfinite(share):
        return "not measured"
    return percent(share) if share == 0 or share >= 1e-5 else f"{figures.number(share * 100)}%"
