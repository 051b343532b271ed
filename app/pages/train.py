"""The Train page: what the run does now, its curves, its log, and what became of it."""

import math
from pathlib import Path

from PySide6.QtCore import Qt, QTimer, Signal, SignalInstance, Slot
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QHBoxLayout, QProgressBar, QSplitter, QStackedLayout, QVBoxLayout, QWidget

from app import figures, theme
from app.background import Background
from app.errors import report
from app.figure_row import FigureRow, FigureSpec
from app.plot_group import REDRAW_MILLISECONDS
from app.run_log import RunLog
from app.run_plots import RunPlots
from app.run_record import RunRecord
from app.widgets import Card, ElidedLabel, EmptyState, IconLabel, button, column, plain_tip
from core import events, words
from core.runs.folder import RunFolder

_FIGURES = (
    FigureSpec("step", "Step", "00,000 of 00,000"),
    FigureSpec("epoch", "Epoch", "00.0 of 00"),
    FigureSpec("loss", "Loss", "00.000", "Averaged over the last steps."),
    FigureSpec("validation", "Validation loss (best)", "00.000 (00.000)", "Measured on the rows that are held out."),
    FigureSpec("speed", "Speed", "00,000 tok/s", "Tokens per second without padding, averaged over the last steps."),
    FigureSpec("memory", "Memory", "000 MB"),
    FigureSpec("left", "Time left", "00 h 00 min"),
)
_SIGNS = {"finished": ("check-circle", "good_text"), "failed": ("x-circle", "danger_text"),
          "interrupted": ("warning", "warning_text"), "stopped": ("stop-circle", "dim_text"),
          "paused": ("pause-circle", "warning_text")}


class TrainPage(QWidget):
    """Follows the run that goes on and shows runs of the past.

    Signals: `start_requested()`; `resume_requested(Path)`: go on with this run folder;
    `chat_requested(Path)` and `export_requested(Path)`: with this run folder.
    """

    start_requested = Signal()
    resume_requested = Signal(object)
    chat_requested = Signal(object)
    export_requested = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._live: RunRecord | None = None
        self._shown: RunRecord | None = None
        self._waiting: list[events.Event] | None = None  # what comes while the past of a resumed run is read
        self._changed = False
        self._reader, self._past_reader = Background(self), Background(self)
        self.figures = FigureRow(_FIGURES)
        self.plots = RunPlots(lambda: self._shown.name if self._shown and self._shown.name else "loss")
        self.log = RunLog()
        self.empty = EmptyState("Nothing has been trained yet. Start, and the loss curve appears here.",
                                "Start training", icon="chart-line")
        self.empty.pressed.connect(self.start_requested)
        self._stack = QStackedLayout(self)
        self._stack.addWidget(self.empty)
        self._stack.addWidget(self._build_run())
        self._timer = QTimer(self)
        self._timer.setInterval(REDRAW_MILLISECONDS)
        self._timer.timeout.connect(self._refresh_if_changed)
        self._timer.start()

    # --- what the window tells -------------------------------------------------------------

    @Slot(object)
    def begin(self, run_dir: Path | None = None) -> None:
        """A run was started, resumed or attached to: follow it from here."""
        self._waiting = None
        self._live = RunRecord(run_dir, live=True, smoothing=self.plots.smoothing)
        self._show(self._live)

    @Slot(object)
    def on_event(self, event: events.Event) -> None:
        """Take one event of the run that goes on; what comes after its end is ignored, but for a new start."""
        if self._waiting is not None:
            self._waiting.append(event)
            return
        if self._live is None or (isinstance(event, events.Started) and not self._live.active):
            self.begin(event.run_dir if isinstance(event, events.Started) else None)
        assert self._live is not None
        if not self._live.active:
            return
        if isinstance(event, events.Planned) and event.first_step > 0 and self._live.step is None:
            self._read_past(event)
            return
        self._live.add(event)
        self._changed = self._changed or self._shown is self._live

    @Slot()
    def end_run(self) -> None:
        """The run is over, also where it could not say so itself."""
        if self._live is not None and self._live.active:
            self._live.break_off()
            self._changed = True

    def _read_past(self, plan: events.Planned) -> None:
        """A run that goes on from a checkpoint: its log up to here first, then what comes."""
        assert self._live is not None
        live, smoothing = self._live, self.plots.smoothing
        self._waiting = []
        if live.run_dir is None:
            self._past_read(live, plan)
            return
        run = RunFolder(live.run_dir)
        self._past_reader.call(lambda: RunRecord.until(run.path, run.read_events(), plan, smoothing),
                               lambda record: self._past_read(record, plan),
                               lambda failure: self._past_not_read(live, plan, failure))

    def _past_not_read(self, live: RunRecord, plan: events.Planned, failure: events.Failed) -> None:
        live.warn(f"What was before can not be shown. {failure.message} {failure.hint}".strip())
        self._past_read(live, plan)

    def _past_read(self, record: RunRecord, plan: events.Planned) -> None:
        shown = self._shown is self._live
        waiting, self._waiting = self._waiting or [], None
        self._live = record
        record.resume(plan)
        if shown:
            self._show(record)
        for event in waiting:
            self.on_event(event)

    def set_paused(self, paused: bool) -> None:
        """The person paused the run that goes on, or let it go on."""
        if self._live is not None:
            self._live.pause(paused)
            self._changed = True

    def set_ready(self, ready: bool, reason: str = "") -> None:
        """Whether Start in the empty state may be pressed, and if not, why."""
        self.empty.button.setEnabled(ready)
        self.empty.button.setToolTip(plain_tip("" if ready else reason))

    def show_run(self, run_dir: Path) -> None:
        """Show a run of the past from its log; the run that goes on, if it is that one."""
        if self._live is not None and self._live.run_dir == run_dir:
            self._show(self._live)
            return
        folder, smoothing = RunFolder(run_dir), self.plots.smoothing
        self._reader.call(
            lambda: RunRecord.from_log(run_dir, folder.read_events(), folder.state(), smoothing),
            self._show, lambda failure: self._show(RunRecord.unreadable(run_dir, failure, smoothing)))

    def show_live(self) -> None:
        """Go back to the run that goes on."""
        if self._live is not None:
            self._show(self._live)

    def run_moved(self, before: Path, after: Path) -> None:
        """A run folder has another name now."""
        for record in (self._live, self._shown):
            if record is not None and record.run_dir == before:
                record.run_dir = after

    def run_deleted(self, run_dir: Path) -> None:
        """A run folder is gone: its curves stay in sight, but nothing can be done with it any more."""
        for record in (self._live, self._shown):
            if record is not None and record.run_dir == run_dir:
                record.run_dir = None
        self._refresh()

    @property
    def record(self) -> RunRecord | None:
        """The run that is shown."""
        return self._shown

    # --- how it is built -------------------------------------------------------------------

    def _build_run(self) -> QWidget:
        page = QWidget()
        layout = QVBoxLayout(page)
        margin = theme.PAGE_MARGIN
        layout.setContentsMargins(margin, theme.CARD_GAP, margin, theme.CARD_GAP)
        layout.setSpacing(theme.CARD_GAP)
        layout.addWidget(self._build_head())
        splitter = QSplitter(Qt.Orientation.Vertical)
        splitter.addWidget(self.plots)
        splitter.addWidget(self.log)
        splitter.setHandleWidth(theme.CARD_GAP // 2)
        splitter.setChildrenCollapsible(False)
        splitter.setStretchFactor(0, 4)
        splitter.setStretchFactor(1, 1)
        splitter.setSizes([400, 130])
        layout.addWidget(splitter, 1)
        return page

    def _build_head(self) -> Card:
        card = Card()
        card.body.setSpacing(theme.GRID)
        card.body.setContentsMargins(theme.CARD_MARGIN, 12, theme.CARD_MARGIN, theme.GRID)
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setRange(0, 1000)
        self.progress.setAccessibleName("Progress of the run")
        self.sign = IconLabel("")
        self.sentence = ElidedLabel("", "strong")
        self.hint = ElidedLabel("", "help")
        self.live_button = button("Show the running one", self.show_live, role="link")
        self.report_button = button("Copy report", self._copy_report, icon="copy")
        self.resume_button = button("Resume", lambda: self._tell_run(self.resume_requested), icon="play")
        self.export_button = button("Export…", lambda: self._tell_run(self.export_requested), icon="export")
        self.chat_button = button("Try it in Chat", lambda: self._tell_run(self.chat_requested), icon="chats")
        card.body.addWidget(self.figures)
        card.body.addWidget(self.progress)
        state = QHBoxLayout()
        state.setSpacing(theme.GRID)
        state.addWidget(self.sign)
        state.addLayout(column(None, self.sentence, self.hint, None, spacing=0), 1)
        for made in (self.live_button, self.report_button, self.resume_button, self.export_button, self.chat_button):
            state.addWidget(made)
        holder = QWidget()
        holder.setLayout(state)
        state.setContentsMargins(0, 0, 0, 0)
        holder.setFixedHeight(36)  # buttons come and go without moving the plots
        card.body.addWidget(holder)
        return card

    # --- showing a run ---------------------------------------------------------------------

    def _show(self, record: RunRecord) -> None:
        self._shown = record
        if record.series.loss.smoothing != self.plots.smoothing:
            record.series.set_smoothing(self.plots.smoothing)
        self.plots.show_series(record.series, record.ranks)
        self.log.show_lines(record.log, replace=True)
        self._stack.setCurrentIndex(1)
        self._refresh()

    @Slot()
    def _refresh_if_changed(self) -> None:
        if self._changed and self.isVisible():
            self._refresh()
            self.plots.changed()

    def _refresh(self) -> None:
        self._changed = False
        record = self._shown
        if record is None:
            return
        self._refresh_figures(record)
        self._refresh_progress(record)
        self._refresh_state(record)
        self.log.show_lines(record.log)

    def _refresh_figures(self, record: RunRecord) -> None:
        series, step = record.series, record.step
        validation = figures.NOT_KNOWN
        if record.evaluated is not None:
            validation = figures.loss(record.evaluated.loss)
            if math.isfinite(record.best_validation):
                validation += f" ({figures.loss(record.best_validation)})"
        loss = series.loss.smoothed
        epochs = record.total_epochs
        self.figures.show_values(
            step=f"{step.step if step else 0:,} of {record.total_steps:,}" if record.plan else figures.NOT_KNOWN,
            epoch=f"{step.epoch:.1f} of {epochs:g}" if step and math.isfinite(epochs) else figures.NOT_KNOWN,
            loss=figures.loss(float(loss[-1])) if len(loss) else figures.NOT_KNOWN,
            validation=validation,
            speed=f"{record.speed():,.0f} tok/s" if math.isfinite(record.speed()) else figures.NOT_KNOWN,
            memory=words.memory(record.memory()) if step else figures.NOT_KNOWN,
            left=figures.time_left(record.seconds_left()),
        )

    def _refresh_progress(self, record: RunRecord) -> None:
        stage = record.stage
        if stage is not None and record.step is None:
            done, total = stage.done, stage.total
        else:
            done, total = record.step.step if record.step else 0, record.total_steps
        self.progress.setValue(int(1000 * done / total) if total else 0)

    def _refresh_state(self, record: RunRecord) -> None:
        self.sign.set_icon(*_SIGNS.get(record.state, ("spinner", "accent_text")))
        self.sentence.set_text(record.sentence())
        self.hint.set_text(record.failure.hint if record.failure else "")
        self.hint.setVisible(bool(self.hint.full_text))
        done = not record.active and record.step is not None and record.run_dir is not None
        self.chat_button.setVisible(done and record.state != "failed")
        self.export_button.setVisible(done and record.state != "failed")
        self.resume_button.setVisible(record.can_resume and record.run_dir is not None)
        if self.report_button.isVisibleTo(self) and record.failure is None:
            self.report_button.setText("Copy report")
        self.report_button.setVisible(record.failure is not None)
        self.live_button.setVisible(self._live is not None and self._live is not record and self._live.active)

    def _tell_run(self, signal: SignalInstance) -> None:
        if self._shown is not None and self._shown.run_dir is not None:
            signal.emit(self._shown.run_dir)

    def _copy_report(self) -> None:
        if self._shown is not None and self._shown.failure is not None:
            QGuiApplication.clipboard().setText(report(self._shown.failure))
            self.report_button.setText("Copied")
