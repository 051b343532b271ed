"""Command lines to copy, written as this system's terminal reads them."""

import shlex
import subprocess
import sys
from collections.abc import Sequence


def command_line(words: Sequence[str]) -> str:
    """The words as one line, quoted where needed."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
