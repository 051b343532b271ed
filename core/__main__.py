"""The headless program: `python -m core`, and `lora-workbench` with a sub-command."""

import sys
from collections.abc import Sequence

from core.cli.arguments import build_parser, spread_overrides
from core.cli.runner import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command. Returns the exit code: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(build_parser().parse_args(spread_overrides(given)))


if __name__ == "__main__":
    sys.exit(main())
