"""The Data page: which files, what is in them, how the rows become tokens, and what is trained."""

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import Qt, Slot
from PySide6.QtGui import QDragEnterEvent, QDragLeaveEvent, QDropEvent
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QStackedLayout, QVBoxLayout, QWidget

from app import theme
from app.draft import Draft
from app.form import Form
from app.histogram import LengthHistogram
from app.operations import Operations
from app.row_browser import RowBrowser
from app.widgets import Card, ElidedLabel, EmptyState, Pill, ProblemLine, button, clear_layout, label, plain_tip, row
from core import words
from core.config import DataConfig, RunConfig
from core.events import DataScanned
from core.run_problems import advice

FILES = "data.train"
FILE_FILTER = "Data (*.jsonl *.json *.csv *.tsv *.txt *.md);;All files (*)"
_FILE_WIDTH = 260
_PROBLEMS_SHOWN = 20


class DataPage(QWidget):
    """Edits the section `data` of the draft. Drop files on it."""

    def __init__(self, draft: Draft, operations: Operations) -> None:
        super().__init__()
        self._draft = draft
        self._files_shown: tuple[str, ...] = ()
        self.setAcceptDrops(True)
        self.add_button = button("Add files…", self.add_files, icon="plus")
        self.form = Form("data", DataConfig, without=("train",), columns=3)
        self.form.changed.connect(draft.set_value)
        self.form.refused.connect(draft.set_error)
        self.histogram = LengthHistogram()
        self.problem = ProblemLine()
        self.format = Pill("")
        self.pills = QHBoxLayout()
        self.pills.setSpacing(theme.GRID)
        self.browser = RowBrowser(draft, operations)
        self.empty = EmptyState(
            "Drop a file of conversations, instructions or plain text here: JSON lines, JSON, CSV or text.",
            "Choose files…", icon="files")
        self.empty.pressed.connect(self.add_files)
        self._card = Card()
        self._stack = QStackedLayout(self)
        self._stack.addWidget(self._build_empty())
        self._stack.addWidget(self._build_full())
        draft.config_changed.connect(self._config_changed)
        draft.scan_changed.connect(self._scan_changed)
        draft.measuring.connect(self.browser.reload)
        draft.part_scanned.connect(lambda part: self._fill_pills(part_pills(part)))
        draft.problems_changed.connect(lambda _problems: self._show_problems())
        draft.card_changed.connect(lambda _card: self._show_problems())
        draft.checking_changed.connect(lambda _checking: self._show_waiting())
        self._config_changed(draft.config)
        self._scan_changed(draft.scan)

    def _build_empty(self) -> QWidget:
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.setContentsMargins(*[theme.PAGE_MARGIN] * 4)
        self._card.body.addWidget(label("Training data", "title"))
        self._card.body.addWidget(self.empty, 1)
        layout.addWidget(self._card)
        return page

    def _build_full(self) -> QWidget:
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.setContentsMargins(*[theme.PAGE_MARGIN] * 4)
        layout.setSpacing(theme.CARD_GAP)
        self._files = QHBoxLayout()
        self._files.setSpacing(theme.GRID)
        head = QHBoxLayout()
        head.setSpacing(theme.CARD_GAP)
        head.addWidget(label("Training data", "title"))
        head.addLayout(self._files)
        head.addStretch(1)
        head.addWidget(self.add_button)
        layout.addLayout(head)
        layout.addLayout(self.pills)
        layout.addWidget(self.problem)
        settings = Card()
        self._settings = settings
        line = QHBoxLayout()
        line.setSpacing(3 * theme.GRID)
        line.addWidget(self.form, 3)
        line.addWidget(self.histogram, 2)
        settings.body.addLayout(line)
        layout.addWidget(settings)
        layout.addWidget(self.browser, 1)
        return page

    def add_files(self) -> None:
        """Let the person pick files."""
        files, _ = QFileDialog.getOpenFileNames(self, "Choose training data", "", FILE_FILTER)
        self.take([Path(file) for file in files])

    def take(self, paths: list[Path], *, replace: bool = False) -> None:
        """Add files (or use them in place of the present ones)."""
        before = () if replace else self._draft.config.data.train
        files = dict.fromkeys((*before, *(str(path) for path in paths)))
        if paths:
            self._draft.set_value(FILES, tuple(files))

    def show_field(self, path: str) -> bool:
        """Lead to the field of a problem."""
        if path == FILES:
            (self.add_button if self._draft.config.data.train else self.empty.button).setFocus()
            return True
        return self.form.show_field(path)

    @Slot(object)
    def _config_changed(self, config: RunConfig) -> None:
        self.form.set_values(config.data, self._draft.refused)
        self._stack.setCurrentIndex(1 if config.data.train else 0)
        if config.data.train != self._files_shown:
            self._files_shown = config.data.train
            self._show_files(config.data.train)
        self.histogram.show_scan(self._draft.scan, config.data.max_length)
        self._show_problems()

    def _show_files(self, files: tuple[str, ...]) -> None:
        clear_layout(self._files)
        for file in files[:3]:
            self._files.addWidget(_FileChip(file, self._remove))
        if len(files) > 3:
            self._files.addWidget(label(f"and {len(files) - 3} more", "help"))

    def _remove(self, file: str) -> None:
        self._draft.set_value(FILES, tuple(item for item in self._draft.config.data.train if item != file))

    @Slot(object)
    def _scan_changed(self, scan: DataScanned | None) -> None:
        self.histogram.show_scan(scan, self._draft.config.data.max_length)
        self._show_pills(scan)
        if scan is not None:
            self.browser.refresh()
        else:
            self._show_waiting()

    def _show_waiting(self) -> None:
        if self._draft.scan is None:
            if self._draft.checking:
                self.browser.show_words("Measuring the data with the model's tokenizer…")
            elif self._draft.problems_of("data") or self._draft.problems_of("model"):
                self.browser.show_words("The rows are shown as soon as the problem above is solved."
                                        if self._draft.problems_of("data") else
                                        "The rows are shown as soon as a model is chosen.")

    def _show_pills(self, scan: DataScanned | None) -> None:
        if scan is None:
            self._fill_pills([Pill("not measured yet" if not self._draft.checking else "measuring…")])
        else:
            self._fill_pills(scan_pills(scan))

    def _fill_pills(self, pills: list[Pill]) -> None:
        clear_layout(self.pills)
        for pill in pills:
            self.pills.addWidget(pill)
        self.pills.addStretch(1)

    def _show_problems(self) -> None:
        draft = self._draft
        self.form.set_problems(draft.problems, advice(draft.config, draft.card, draft.scan))
        wrong = next((problem for problem in draft.problems if problem.field == FILES), None)
        self.problem.set_problem(f"{wrong.message} {wrong.hint}".strip() if wrong else "")

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        """Accept files of this machine."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()
            self._mark_drop(True)

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:  # noqa: N802
        """Nothing was dropped."""
        self._mark_drop(False)

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        """Take the files."""
        self._mark_drop(False)
        self.take([Path(url.toLocalFile()) for url in event.mimeData().urls() if url.isLocalFile()])
        event.acceptProposedAction()

    def _mark_drop(self, dropping: bool) -> None:
        for card in (self._card, self.browser):
            theme.set_role(card, "card-drop" if dropping else "card")


class _FileChip(Card):
    """A file's name, its whole path as tool tip, and a cross to take it away."""

    def __init__(self, file: str, remove: Callable[[str], None]) -> None:
        super().__init__()
        name = ElidedLabel(Path(file).name, mode=Qt.TextElideMode.ElideMiddle)
        name.setMaximumWidth(_FILE_WIDTH)
        name.setMinimumWidth(min(name.sizeHint().width(), _FILE_WIDTH))
        self.setToolTip(plain_tip(file))
        cross = button("", lambda: remove(file), role="link", icon="x", tip="Take this file away")
        cross.setAccessibleName(f"Take away {Path(file).name}")
        self.body.setContentsMargins(12, 3, 8, 3)
        self.body.addLayout(row(name, cross))


def part_pills(part: DataScanned) -> list[Pill]:
    """What is known while the data is still being measured."""
    pills = [Pill(f"{part.format} · {words.plural(part.rows, 'row')} so far")] if part.format else []
    return [*pills, Pill(f"measuring… {words.percent(part.measured)}")]


def scan_pills(scan: DataScanned) -> list[Pill]:
    """What was found, as small signs: the format first, then one for each check."""
    about, of = ("about ", "row of the sample") if scan.sampled else ("", "row")
    found = " · ".join([scan.format, words.plural(scan.rows, "row"), f"{about}{words.count(scan.tokens)} tokens",
                        f"{about}{words.count(scan.supervised_tokens)} trained"])
    pills = [Pill(found, "neutral", f"All rows were read. The tokens are estimated from {scan.sampled:,} rows "
                  "spread over the whole data." if scan.sampled else "")]
    if scan.rows_cut:
        pills.append(Pill(f"{about}{words.plural(scan.rows_cut, 'row')} cut off", "warning",
                          "These rows are longer than the maximum length; their end is not learned."))
    else:
        pills.append(Pill(f"no {of} cut off", "good"))
    if scan.rows_without_supervision:
        pills.append(Pill(f"{about}{words.plural(scan.rows_without_supervision, 'row')} without an answer", "warning",
                          "Nothing of these rows would be trained; they are left out."))
    else:
        pills.append(Pill(f"every {of} has an answer", "good"))
    if scan.problems:
        more = len(scan.problems) - _PROBLEMS_SHOWN
        lines = [*scan.problems[:_PROBLEMS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        pills.append(Pill(words.plural(len(scan.problems), "problem"), "danger", "\n".join(lines)))
    return pills
