"""How events look in a terminal: as lines of JSON, or as a progress bar and plain words.

Foreign text (answers, file names, messages) is never read as markup, and control characters that
could steer the terminal are shown as what they are.
"""

import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from core import events, words
from core.runs.running_mean import RunningMean
from core.runs.time_left import TimeLeft

ResultText = Callable[[dict[str, Any]], str]
_SECONDS_BETWEEN_LINES = 10.0
ANSWER_TITLES = {"base": "Base model", "tuned": "Tuned model"}
_WIDE = 100  # characters; in a narrower terminal the bar is shorter


class Screen(Protocol):
    """Where the events of one sub-command go."""

    def __enter__(self) -> Self:
        """Prepare the output."""
        ...

    def __exit__(self, *error: object) -> None:
        """Leave the terminal as it was."""
        ...

    def show(self, event: events.Event) -> None:
        """Show one event."""
        ...

    def fail(self, failed: events.Failed, report: str) -> None:
        """Show why it ended; `report` is the path of a file with technical details, or empty."""
        ...


class JsonScreen:
    """Every event is one line of JSON on the standard output.

    Args:
        rows: name of a list in the Result; then each of its objects is a line, and nothing else is.
    """

    def __init__(self, rows: str = "") -> None:
        self._rows = rows

    def __enter__(self) -> Self:
        _use_utf8(sys.stdout)
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to leave: every line was flushed."""

    def show(self, event: events.Event) -> None:
        """Print one line, or the rows."""
        if not self._rows or isinstance(event, events.Failed):
            print(events.to_json(event), flush=True)
        elif isinstance(event, events.Result):
            for row in events.to_plain(event)[self._rows]:
                print(json.dumps(row, ensure_ascii=False), flush=True)

    def fail(self, failed: events.Failed, report: str) -> None:
        """Print the failure as the last line."""
        self.show(failed)


class QuietScreen:
    """Of a process that another one speaks for: it says only why it ended, where the other can not."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to leave: nothing was drawn."""

    def show(self, event: events.Event) -> None:
        """Show nothing."""

    def fail(self, failed: events.Failed, report: str) -> None:
        """Say it where the other one would have."""
        with self._screen:
            self._screen.fail(failed, report)


class TextScreen:
    """A progress bar and notes on the standard error, answers and results on the standard output.

    Args:
        result_text: puts the values of the Result into words.
        titled: write above each answer who gives it, for answers that are compared.
    """

    def __init__(self, result_text: ResultText, *, titled: bool = False) -> None:
        self._result_text = result_text
        self._titled = titled
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._bar = _Bar(self._console)
        self._in_answer = False

    def __enter__(self) -> Self:
        _use_utf8(sys.stdout)
        _use_utf8(sys.stderr)
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away."""
        self._bar.close()

    def show(self, event: events.Event) -> None:
        """Show one event in the form that fits it."""
        if isinstance(event, events.Planned):
            self._note(_planned_text(event))
        self._bar.add(event)
        match event:
            case events.Evaluated():
                self._note(f"Step {event.step:,}: validation loss {event.loss:.4f}" + (" (best)" if event.best else ""))
            case events.RanksChosen(step=step, ranks=ranks):
                self._note(f"Step {step:,}: {words.plural(sum(ranks.values()), 'rank')} in "
                           f"{words.plural(len(ranks), 'matrix', 'matrices')}")
            case events.CheckpointSaved():
                self._note(f"Step {event.step:,}: checkpoint saved ({words.size(event.bytes)})")
            case events.Note():
                self._note(event.message)
            case events.Warned():
                self._note(f"Warning: {event.message} {event.hint}".rstrip(), "yellow")
            case events.TokenGenerated():
                self._begin_answer(event.column)
                print(visible(event.text), end="", flush=True)
            case events.GenerationDone():
                self._begin_answer(event.column)  # an empty one has its title, too
                self._end_answer()
            case events.Result():
                self._bar.close()
                self._end_answer()
                self._print_result(self._result_text(event.values))

    def fail(self, failed: events.Failed, report: str) -> None:
        """One sentence and a hint; technical details stay in the report."""
        self._bar.close()
        self._end_answer()
        self._note(failed.message, "" if failed.cancelled else "bold red")
        if failed.hint:
            self._note(failed.hint)
        if report:
            self._note(f"The report is in {report}")

    def _note(self, text: str, style: str = "") -> None:
        self._console.print(Text(visible(text), style=style), soft_wrap=True)

    def _begin_answer(self, column: str) -> None:
        self._bar.close()
        if self._titled and not self._in_answer:
            print(f"{ANSWER_TITLES.get(column, column)}:")
        self._in_answer = True

    def _end_answer(self) -> None:
        if self._in_answer:
            print("\n" if self._titled else "", flush=True)  # an empty line between answers that are compared
        self._in_answer = False

    def _print_result(self, text: str) -> None:
        if text:
            print(visible(text), flush=True)


class _Bar:
    """One progress bar that is reused by every stage; on no terminal, a line from time to time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._total = 0
        self._speed = RunningMean()  # tokens/s
        self._left = TimeLeft()
        self._last_line = 0.0

    def add(self, event: events.Event) -> None:
        """Take in what tells how far the run is."""
        self._left.add(event)
        match event:
            case events.Progress():
                self._stage_done(event)
            case events.Planned():
                self._plan(event)
            case events.StepDone():
                self._step(event)

    def _stage_done(self, event: events.Progress) -> None:
        """`done` of `total` in a stage."""
        share = f"{event.done:,} of {event.total:,} {event.unit}".rstrip() if event.total else ""
        if event.unit == "bytes" and event.total:
            share = f"{words.size(event.done)} of {words.size(event.total)}"
        self._draw(event.stage, event.done, event.total, share)

    def _plan(self, event: events.Planned) -> None:
        """The number of steps is known."""
        self._total = event.total_steps
        self._draw("Training", event.first_step, event.total_steps, "first step")

    def _step(self, event: events.StepDone) -> None:
        """One step: loss, speed and time left, smoothed over some ten steps."""
        speed = self._speed.add(event.tokens / max(event.seconds, 1e-9))
        left = words.time_left(self._left.seconds()) if event.step < self._total else ""
        parts = (f"step {event.step:,} of {self._total:,}", f"loss {event.loss:.4f}",
                 f"{speed:,.0f} tokens/s", f"{left} left" if left else "")
        self._draw("Training", event.step, self._total, " · ".join(filter(None, parts)))

    def close(self) -> None:
        """Take the bar from the terminal."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def _draw(self, stage: str, done: int, total: int, text: str) -> None:
        if not self._console.is_terminal:
            self._print_line(stage, done, total, text)
            return
        if self._progress is None:
            bar = BarColumn(bar_width=24 if self._console.width >= _WIDE else 10)
            self._progress = Progress(TextColumn("{task.description}", markup=False), bar,
                                      TextColumn("{task.fields[text]}", markup=False),
                                      console=self._console, transient=True)
            self._task = self._progress.add_task(visible(stage), text=visible(text))
            self._progress.start()
        if self._task is not None:
            self._progress.update(self._task, description=visible(stage), completed=done, total=total or None,
                                  text=visible(text))

    def _print_line(self, stage: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        if stage == self._stage and not total:
            return
        self._stage, self._last_line = stage, now
        self._console.print(Text(visible(f"{stage}: {text}" if text else stage)), soft_wrap=True)


def visible(text: str) -> str:
    """`text` with its control characters shown, so that foreign text can not steer the terminal."""
    return "".join(char if char in "\n\t" or char.isprintable() or char == "\u200d" else _escaped(char)
                   for char in text)


def _escaped(char: str) -> str:
    # spaces of other widths are not "printable" for Python but harmless; line separators are not
    return " " if char.isspace() and ord(char) > 0x9F and char not in "\u2028\u2029" else f"\\x{ord(char):02x}"


def _planned_text(event: events.Planned) -> str:
    share = event.trainable_parameters / event.total_parameters if event.total_parameters else 0.0
    held_out = f", {words.plural(event.validation_rows, 'row')} held out" if event.validation_rows else ""
    return (f"{words.plural(event.train_rows, 'row')} to learn from{held_out}; "
            f"{words.count(event.trainable_parameters)} of {words.count(event.total_parameters)} parameters trained "
            f"({words.percent(share)}); {event.way}")


def _use_utf8(stream: TextIO) -> None:
    """Any text can be printed: UTF-8, and what that can not hold is escaped."""
    if isinstance(stream, io.TextIOWrapper):  # not in tests that replace it
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
