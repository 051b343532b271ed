"""What a client and an engine say to each other: JSON lines on a socket of this machine.

Every message is a frozen dataclass and one line of JSON, {"type": class name, ...}. Never pickle.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

from core import files
from core.control import Instruction
from core.errors import EngineError

HOST = "127.0.0.1"
HEARTBEAT_SECONDS = 1.0
FIRST_LINE_SECONDS = 5.0  # a stranger who says nothing is dropped
FIRST_LINE_BYTES = 4096
MAX_LINE_BYTES = 64 * 2**20
MAX_QUEUED_BYTES = 64 * 2**20  # a listener that is further behind is dropped


@dataclass(frozen=True)
class Hello:
    """The first line of a client."""

    token: str


@dataclass(frozen=True)
class Submit:
    """Run a job after those that wait already; `job` is what `core.jobs.to_plain` wrote."""

    id: str
    job: dict[str, Any]


@dataclass(frozen=True)
class Tell:
    """Pass a command to a job that waits or runs."""

    id: str
    command: Instruction


@dataclass(frozen=True)
class Follow:
    """Send the further events of the run in this folder."""

    run_dir: Path


@dataclass(frozen=True)
class Quit:
    """Stop what runs, let it save what it has, and end the process."""


@dataclass(frozen=True)
class Welcome:
    """The engine's answer to a right token."""

    pid: int


@dataclass(frozen=True)
class Ready:
    """The engine is warmed up: jobs start without delay. What it found this machine to compute with.

    `gpus` can train one run together; `accelerator` is the name and the memory of what computes by default, "" for
    the processor; `devices` maps each name that `training.device` may have, the best first, to its memory in bytes, and
    is empty while that is not known.
    """

    gpus: int = 0
    accelerator: str = ""
    devices: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Beat:
    """Sent when there is nothing else to say: the process lives."""


@dataclass(frozen=True)
class Told:
    """An event of a job; `event` is what `core.events.to_plain` wrote."""

    id: str
    event: dict[str, Any]


@dataclass(frozen=True)
class Following:
    """The answer to Follow: the log's first `recorded_bytes` hold all events before the next Told."""

    id: str
    recorded_bytes: int


@dataclass(frozen=True)
class NotFollowing:
    """The answer to Follow when that run is not trained here."""


@dataclass(frozen=True)
class Leaving:
    """The engine ends on its own; the next job needs a new one."""


Message = (Hello | Submit | Tell | Follow | Quit | Welcome | Ready | Beat | Told | Following | NotFollowing | Leaving)
_TYPES: dict[str, type] = {kind.__name__: kind for kind in Message.__args__}


def encode(message: Message) -> bytes:
    """A message as one line."""
    values = {item.name: getattr(message, item.name) for item in dataclasses.fields(message)}
    line = json.dumps({"type": type(message).__name__, **values}, ensure_ascii=False, allow_nan=False, default=_plain)
    # a lone surrogate from a damaged file name or dataset must not stop the stream
    return line.encode("utf-8", "replace") + b"\n"


def _plain(value: Any) -> Any:
    """What JSON does not know: a record as an object, a path as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def decode(line: bytes) -> Message:
    """The message in a line.

    Raises:
        ValueError: not a message of ours.
    """
    try:
        values = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    kind = _TYPES.get(values.pop("type", "")) if isinstance(values, dict) else None
    if kind is None:
        raise ValueError("not a message of the engine")
    return _adapter(kind).validate_python(values)


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@dataclass(frozen=True)
class Address:
    """Where an engine listens, written to a file that only its owner may read."""

    port: int
    token: str
    pid: int
    log: str = ""

    def write(self, path: Path) -> None:
        """Write the file (mode 0600)."""
        files.write_text(path, json.dumps(dataclasses.asdict(self)), mode=0o600)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            FileNotFoundError: there is none (any more, or yet).
            EngineError: it is damaged.
        """
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except ValueError:
            raise EngineError(f"The engine's address in {path} is damaged.") from None
