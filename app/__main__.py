"""The console script `lora-workbench`: without arguments the window, with a sub-command the CLI."""

import sys
from collections.abc import Sequence

from app import qt_libraries

NO_DISPLAY = """\
There is no display here, so no window can be opened.
The sample job runs in this terminal instead (`lora-workbench demo`); `lora-workbench --help` tells the rest."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Open the window, or hand a sub-command to the headless core. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given:
        return _run_headless(given)
    if not qt_libraries.has_display():
        print(NO_DISPLAY, flush=True)
        return _run_headless(["demo"])
    missing = qt_libraries.missing_libraries(qt_libraries.platform_plugin())
    if missing:
        print(f"The window needs shared libraries that this system lacks: {', '.join(missing)}.", file=sys.stderr)
        print(qt_libraries.advice(missing), file=sys.stderr)
        return 1
    from app.program import run_window  # noqa: PLC0415 - Qt is loaded only after its libraries were found

    return run_window()


def _run_headless(arguments: list[str]) -> int:
    from core.__main__ import main as run_headless  # noqa: PLC0415 - the CLI alone loads it, and without Qt

    return run_headless(arguments)


if __name__ == "__main__":
    sys.exit(main())
