"""Run one sub-command: its events to the screen, Ctrl-C to its control, its errors into words."""

import argparse
import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from types import FrameType

from core import files
from core.cli.screen import JsonScreen, QuietScreen, Screen, TextScreen
from core.control import Control
from core.errors import CoreError, ToldElsewhere
from core.events import Failed, Result
from core.launch import place
from core.openmp import set_wait_policy
from core.paths import logs_root

EXIT_ERROR = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT


def run_command(options: argparse.Namespace) -> int:
    """Show the events of `options.command(options, control)`. Returns the exit code.

    The first Ctrl-C (or a polite request to end) asks the job to stop and keep what it has; the
    second ends it where it is.
    """
    _quiet_libraries()
    control = Control()
    screen: Screen = JsonScreen(options.json_rows) if options.json else TextScreen(
        options.text, titled=getattr(options, "compare", False))
    if not place().first:
        screen = QuietScreen(screen)
    signals: list[int] = []
    try:
        with _signals_stop(control, signals), screen:
            ended_well = _show_all(options, control, screen)
    except KeyboardInterrupt:
        print("Aborted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    if signals:
        return 128 + signals[0]
    return 0 if ended_well else EXIT_ERROR


def _quiet_libraries() -> None:
    """What libraries tell their programmers is not for the person who runs this."""
    set_wait_policy(os.environ)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _show_all(options: argparse.Namespace, control: Control, screen: Screen) -> bool:
    """Returns False where the job failed, was cancelled, or proved its own result wrong."""
    result = None
    try:
        for event in options.command(options, control):
            try:
                screen.show(event)
            except BrokenPipeError:  # nobody reads any more: keep what there is and end
                _silence_output()
                control.stop()
            if isinstance(event, Result):
                result = event
    except ToldElsewhere:
        return False
    except Exception as error:  # noqa: BLE001 - the one place where the CLI puts any error into words
        failed = Failed.of(error)
        screen.fail(failed, _write_report(failed) if _is_unexpected(error) else "")
        return False
    return result is not None and not _proved_wrong(result)


def _proved_wrong(result: Result) -> bool:
    """True where a receipt says that the export is not what was trained."""
    receipt = result.values.get("receipt")
    in_receipt = isinstance(receipt, dict) and receipt.get("passed") is False
    return in_receipt or result.values.get("passed") is False


def _is_unexpected(error: Exception) -> bool:
    return not isinstance(error, CoreError | OSError | MemoryError)


def _write_report(failed: Failed) -> str:
    """Keep the technical details of an unexpected error in a file; its path, or "" where none can be written."""
    path = logs_root() / f"report-{datetime.now():%Y-%m-%d_%H-%M-%S}.txt"
    try:
        files.write_text(path, f"{failed.message}\n\n{failed.details}")
    except (OSError, CoreError):
        return ""
    return str(path)


def _silence_output() -> None:
    """Send what is still printed to nowhere, so that the interpreter does not stumble when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


@contextlib.contextmanager
def _signals_stop(control: Control, signals: list[int]) -> Iterator[None]:
    """Within this, SIGINT and SIGTERM ask for a stop, a second one raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)
        control.stop()
        if place().first:
            print("\nStopping; what was learned is kept. Press Ctrl-C again to abort at once.", file=sys.stderr)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
