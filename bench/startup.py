"""Seconds from the command to the painted window: the median of five second calls of `make run`.

    python bench/startup.py [--times 5] [--command "make run"]

Uses the display if there is one, Xvfb if it is installed, else Qt's offscreen platform.
"""

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "LORA_WORKBENCH_STARTUP_PROBE"  # app/startup_probe.py
MARKER = "first paint"
LIMIT_SECONDS = 2.0


def main() -> int:
    """Measure and print; exit code 1 where the median is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--command", default="make --no-print-directory run")
    options = parser.parse_args()
    environment, server = display()
    try:
        seconds_to_paint(options.command, environment)  # the first call may set up and fills the file cache
        seconds = [seconds_to_paint(options.command, environment) for _ in range(options.times)]
    finally:
        if server is not None:
            server.terminate()
            server.wait()
    median = statistics.median(seconds)
    where = environment.get("QT_QPA_PLATFORM") or f"display {environment.get('DISPLAY', '')}"
    print(f"{options.command}: median {median:.2f} s to the painted window on {where} "
          f"({', '.join(f'{value:.2f}' for value in seconds)}; limit {LIMIT_SECONDS} s, {os.cpu_count()} cores)")
    return int(median > LIMIT_SECONDS)


def display() -> tuple[dict[str, str], subprocess.Popen[bytes] | None]:
    """The environment in which a window can be shown, and the X server that was started for it."""
    environment = {**os.environ, VARIABLE: "1"}
    if any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")):
        return environment, None
    if shutil.which("Xvfb") is None:
        return {**environment, "QT_QPA_PLATFORM": "offscreen"}, None
    read, write = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(write), "-screen", "0", "1600x1000x24"], pass_fds=[write],
                              stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as answer:
        number = answer.readline().strip()
    return {**environment, "DISPLAY": f":{number}"}, server


def seconds_to_paint(command: str, environment: dict[str, str]) -> float:
    """Start the program and wait for the line that tells of the first paint."""
    started = time.perf_counter()
    process = subprocess.Popen(shlex.split(command), cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said: list[str] = []
    seconds = None
    for line in process.stdout:
        said.append(line)
        if line.strip() == MARKER and seconds is None:
            seconds = time.perf_counter() - started
    process.wait()
    if seconds is None:
        raise SystemExit("The window was not painted:\n" + "".join(said))
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())
