"""The bar above the page (name, Command, Start) and the line below it (how far the run is)."""

import math

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QProgressBar, QWidget

from app import figures, theme
from app.run_session import SessionState
from app.widgets import ElidedLabel, button, plain_tip
from core import words
from core.events import Event, Failed, Finished, Planned, Progress, StepDone
from core.runs.running_mean import RunningMean
from core.runs.time_left import TimeLeft


class TopBar(QWidget):
    """Name of the run and the buttons; Start is the only filled one and becomes Pause and Stop."""

    start_pressed = Signal()
    pause_pressed = Signal()
    stop_pressed = Signal()
    command_pressed = Signal()
    name_edited = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        theme.set_role(self, "bar")
        self.setFixedHeight(56)
        self.name = QLineEdit()
        self.name.setPlaceholderText("Name of the run")
        self.name.setAccessibleName("Name of the run")
        self.name.setFont(theme.font("section"))
        self.name.setMaximumWidth(320)
        self.name.setMaxLength(80)
        self.name.textEdited.connect(self.name_edited)
        self.command = button("Command", self.command_pressed.emit, icon="terminal-window",
                              tip="The same run as a command line and a run file")
        self.start = button("Start training", self.start_pressed.emit, role="primary", icon="play")
        self.pause = button("Pause", self.pause_pressed.emit, icon="pause")
        self.stop = button("Stop", self.stop_pressed.emit, role="danger", icon="stop",
                           tip="Ends after the present step and keeps the adapter")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(theme.PAGE_MARGIN, 0, theme.PAGE_MARGIN, 0)
        layout.setSpacing(theme.GRID)
        layout.addWidget(self.name, 1)
        layout.addStretch(1)
        for made in (self.command, self.start, self.pause, self.stop):
            layout.addWidget(made)
        self.show_state("idle")

    def set_ready(self, ready: bool, reason: str) -> None:
        """Whether Start may be pressed; if not, the reason is its tool tip."""
        self.start.setEnabled(ready)
        self.start.setToolTip(plain_tip("" if ready else reason))
        self.start.setAccessibleDescription("" if ready else reason)

    def show_state(self, state: SessionState) -> None:
        """Show the buttons that fit what the run does."""
        idle = state == "idle"
        self.start.setVisible(idle)
        self.pause.setVisible(not idle)
        self.stop.setVisible(not idle)
        self.pause.setEnabled(state in ("running", "paused"))
        self.stop.setEnabled(state != "stopping")
        paused = state == "paused"
        self.pause.setText("Resume" if paused else "Pause")
        self.pause.setAccessibleName("Resume" if paused else "Pause")
        self.pause.setIcon(theme.icon("play" if paused else "pause"))
        self.stop.setText("Stopping…" if state == "stopping" else "Stop")


class StatusLine(QWidget):
    """`Step 120/900 · loss 0.84 · 310 tok/s · 2.1 GB · 4 min left` and a bar."""

    def __init__(self) -> None:
        super().__init__()
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        theme.set_role(self, "bar")
        self.setFixedHeight(36)
        self.text = ElidedLabel("", "help")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setFixedWidth(200)
        self.bar.setRange(0, 1000)
        self.bar.setAccessibleName("Progress of the run")
        self._idle_words = ""
        self._total = 0
        self._left = TimeLeft()
        self._loss, self._speed = RunningMean(), RunningMean()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(theme.PAGE_MARGIN, 0, theme.PAGE_MARGIN, 0)
        layout.setSpacing(theme.CARD_GAP)
        layout.addWidget(self.text, 1)
        layout.addWidget(self.bar)
        self.bar.setVisible(False)

    def show_idle(self, text: str) -> None:
        """While no run goes on."""
        self._idle_words = text
        self.text.set_text(text)
        self.bar.setVisible(False)

    def begin(self) -> None:
        """A run begins."""
        self._total, self._left = 0, TimeLeft()
        self._loss, self._speed = RunningMean(), RunningMean()
        self.text.set_text("Getting ready…")
        self.bar.setRange(0, 0)
        self.bar.setVisible(True)

    def add(self, event: Event) -> None:
        """Take in one event of the run."""
        self._left.add(event)
        if isinstance(event, Progress):
            done = figures.amount_done(event.done, event.total, event.unit)
            self.text.set_text(" · ".join(part for part in (event.stage, done) if part))
        elif isinstance(event, Planned):
            self._total = event.total_steps
            self.bar.setRange(0, 1000)
            self.bar.setValue(0)
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Failed) and not event.cancelled:
            self.text.set_text(event.message)
        elif isinstance(event, Finished):
            self.text.set_text("Saving…" if event.outcome == "stopped" else "Finished.")

    def _step(self, step: StepDone) -> None:
        loss = self._loss.add(step.loss)
        speed = self._speed.add(step.tokens / step.seconds if step.seconds else math.nan)
        left = figures.time_left(self._left.seconds()) if self._total else ""
        total = f"/{self._total:,}" if self._total else ""
        parts = [f"Step {step.step:,}{total}", f"loss {loss:.3f}", f"{speed:,.0f} tok/s",
                 words.memory(step.device_bytes or step.rss_bytes), f"{left} left" if left else ""]
        self.text.set_text(" · ".join(part for part in parts if part))
        if self._total:
            self.bar.setRange(0, 1000)
            self.bar.setValue(round(1000 * step.step / self._total))
