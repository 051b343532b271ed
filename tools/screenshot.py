"""Make docs/screenshot.png: the real window during a real, short training run of the sample.

    python tools/screenshot.py [docs/screenshot.png] [--steps 150] [--dark] [--pages FOLDER]

It works in a folder of its own and touches neither the person's models nor their settings. With
--pages every page is saved as a picture besides.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PAGES = ("model", "data", "method", "train", "runs", "chat")
SETTLE_SECONDS = 1.5  # after a page is opened: what it loads in the background
LONGEST_WAIT_SECONDS = 900.0


def main() -> int:
    """Open the window, train for some steps, take the picture, end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, default=ROOT / "docs" / "screenshot.png")
    parser.add_argument("--steps", type=int, default=150, help="steps of the run before the picture is taken")
    parser.add_argument("--model", default="starter", help="the base model (default: the starter)")
    parser.add_argument("--dark", action="store_true", help="in the dark colours")
    parser.add_argument("--pages", type=Path, metavar="FOLDER", help="save every page there as well")
    options = parser.parse_args()
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    with tempfile.TemporaryDirectory(prefix="lora-workbench-picture-") as home:
        lend_starter(Path(home))
        os.environ["LORA_WORKBENCH_HOME"] = home
        take(options)
    return 0


def lend_starter(home: Path) -> None:
    """Let the person's own prepared starter be used, read only; without one it is prepared in `home`."""
    from core.models.starter import starter_path, starter_ready

    if starter_ready():
        target = home / "models" / starter_path().name
        target.mkdir(parents=True)
        on_one_disk = starter_path().stat().st_dev == home.stat().st_dev
        for file in starter_path().iterdir():
            if on_one_disk:
                os.link(file, target / file.name)
            else:
                shutil.copyfile(file, target / file.name)


def take(options: argparse.Namespace) -> None:
    """The pictures. Qt is imported here, after the environment is set."""
    from PySide6.QtWidgets import QApplication

    from app import theme
    from app.operations import Operations
    from app.settings import Settings
    from app.window import MainWindow
    from core.config import load_config, with_overrides
    from core.engine.client import EngineClient
    from core.paths import SAMPLE_RUN_FILE

    app = QApplication([sys.argv[0]])
    app.setApplicationName("LoRA Workbench")
    operations = Operations(EngineClient("train"), EngineClient("work"))
    config = with_overrides(load_config(SAMPLE_RUN_FILE), [f"model.path={options.model}"])
    colours = theme.Theme(app, "dark" if options.dark else "light")
    window = MainWindow(operations, Settings(), colours, config, "orders")
    window.show()
    wait_until(lambda: window.draft.ready, "the model and the data are read")
    steps: list[int] = []
    window.session.happened.connect(lambda event: steps.append(getattr(event, "step", 0)))
    window.start_training()
    wait_until(lambda: max(steps, default=0) >= options.steps or (bool(steps) and not window.session.active),
               f"{options.steps} steps are done")
    settle()
    save(window, options.picture)
    window.session.stop()
    wait_until(lambda: not window.session.active, "the run has stopped")
    for page in PAGES if options.pages else ():
        window.show_page(page)
        settle()
        save(window, options.pages / f"{page}.png")
    window.close()
    app.processEvents()


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Let the window work until something holds."""
    import time

    from PySide6.QtTest import QTest

    end = time.monotonic() + LONGEST_WAIT_SECONDS
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"Waited {LONGEST_WAIT_SECONDS:.0f} s in vain until {what}.")
        QTest.qWait(50)


def settle() -> None:
    """Let timers and background work come to their end."""
    from PySide6.QtTest import QTest

    QTest.qWait(round(1000 * SETTLE_SECONDS))


def save(window: object, path: Path) -> None:
    """The window as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = window.grab()  # type: ignore[attr-defined]
    if not picture.save(str(path), "PNG"):
        raise SystemExit(f"{path} could not be written.")
    print(f"{path}: {picture.width()} x {picture.height()}")


if __name__ == "__main__":
    sys.exit(main())
