"""The runs on this machine at a glance, quick for hundreds of them: logs are searched, not parsed."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from core import events, files
from core.config import RunConfig, load_config
from core.errors import ConfigError, CoreError
from core.runs.folder import RunFolder, RunState, safe_name

SummaryState = RunState | Literal["damaged"]
_CACHED_RUNS = 4096
_MOST_LOG_BYTES = 64 * 2**20  # about 250,000 steps
_HEAD_BYTES = 2**20


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs. Numbers that the run has not reached yet are None or 0."""

    folder: Path
    name: str
    state: SummaryState
    started: float = 0.0  # seconds since the epoch; of the first start
    seconds: float | None = None  # time spent on it, over all its parts
    model: str = ""
    method: str = ""  # "lora", "lora + prefix", …
    rank: int = 0  # 0 where there is no update of a rank
    alpha: float = 0.0
    steps_done: int = 0
    steps_total: int = 0
    last_loss: float | None = None
    best_validation_loss: float | None = None
    trainable_parameters: int = 0
    bytes: int = 0  # of the whole folder
    problem: str = ""  # why it is damaged or failed, one sentence


@dataclass(frozen=True)
class _LogFacts:
    """What the log tells without the clock and the lock."""

    state: SummaryState = "new"
    started: float = 0.0
    last_started: float = 0.0
    earlier_seconds: float = 0.0  # of the parts before the last start
    train_seconds: float | None = None  # of the last part, where it came to its end
    steps_done: int = 0
    steps_total: int = 0
    last_loss: float | None = None
    best_validation_loss: float | None = None
    trainable_parameters: int = 0
    problem: str = ""


def list_runs(root: Path, others: Sequence[Path] = ()) -> list[RunSummary]:
    """Every run folder in `root` and those of `others` that are one, the newest first.

    A damaged one is listed as such, never raised.
    """
    inside = list(root.iterdir()) if root.is_dir() else []
    elsewhere = [path for path in others if path.parent != root]
    found = [summarise(RunFolder(path)) for path in (*inside, *elsewhere) if is_run(path)]
    return sorted(found, key=lambda summary: (summary.started, summary.name), reverse=True)


def summarise(run: RunFolder) -> RunSummary:
    """The summary of one run; state "damaged" where its files can not be read."""
    try:
        return _summarise(run)
    except ConfigError as error:
        problem = error.message.partition("\n")[0]
    except OSError as error:
        problem = f"It can not be read: {error.strerror or error}."
    return RunSummary(run.path, run.path.name, "damaged", _changed(run.path), bytes=_folder_bytes(run.path),
                      problem=problem)


def rename_run(run: RunFolder, name: str) -> RunFolder:
    """Give a run another name, which is its folder's name.

    Raises:
        CoreError: it is being trained, the name is taken, or it can not be a folder's name.
    """
    target = run.path.with_name(safe_name(name))
    if target.name == run.path.name:
        return run
    require_idle(run, "renamed")
    if target.exists() and not target.samefile(run.path):  # the same, where only upper and lower case differ
        raise CoreError(f"There is a run called {target.name} already.", "Choose another name.")
    run.path.rename(target)
    files.sync_folder(target.parent)
    return RunFolder(target)


def require_idle(run: RunFolder, action: str) -> None:
    """Refuse what must not happen to a run that is being trained; `action` is "renamed", "deleted" …

    Raises:
        CoreError: it is being trained.
    """
    if files.is_locked(run.lock_path):
        raise CoreError(f"The run {run.path.name} is being trained and can not be {action} now.", "Stop it first.")


def config_difference(a: RunConfig, b: RunConfig) -> list[tuple[str, Any, Any]]:
    """Fields in which two configs differ, as (dotted path, value of a, value of b), in the config's order.

    A field that one of them lacks (another adapter method) counts as None there.
    """
    left, right = dict(_flat(a.model_dump())), dict(_flat(b.model_dump()))
    paths = [*left, *(path for path in right if path not in left)]
    return [(path, left.get(path), right.get(path)) for path in paths if left.get(path) != right.get(path)]


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_run(path: Path) -> bool:
    """True for a folder that holds something of a run, also one that can not be read."""
    if path.name.startswith(".") or not path.is_dir():
        return False
    run = RunFolder(path)
    try:
        return any(part.exists() for part in (run.config_path, run.events_path, run.checkpoints, run.adapter))
    except PermissionError:  # listed as a run that can not be read
        return True


def _summarise(run: RunFolder) -> RunSummary:
    for path in (run.config_path, run.events_path):
        if path.exists() and not path.is_file():  # to read a pipe would wait for ever
            raise ConfigError(f"{path.name} is not a file.")
    config = _config(run.config_path, *_version(run.config_path))
    version = _version(run.events_path)
    facts = _read_log(run.events_path, *version)
    running = files.is_locked(run.lock_path)
    if facts.state == "damaged":
        facts = replace(facts, started=_changed(run.path))
    end = time.time() if running else version[0] / 1e9
    seconds = None
    if facts.started and facts.state != "damaged":
        part = max(0.0, end - facts.last_started) if facts.train_seconds is None or running else facts.train_seconds
        seconds = facts.earlier_seconds + part
    return RunSummary(
        folder=run.path, name=run.path.name, state="running" if running else facts.state,
        started=facts.started or _changed(run.path), seconds=seconds,
        model=Path(config.model.path).name, method=" + ".join(config.trained),
        rank=getattr(config.adapter, "rank", 0), alpha=getattr(config.adapter, "alpha", 0.0),
        steps_done=facts.steps_done, steps_total=facts.steps_total,
        last_loss=facts.last_loss, best_validation_loss=facts.best_validation_loss,
        trainable_parameters=facts.trainable_parameters, bytes=_cached_bytes(run.path, *version),
        problem="" if running else facts.problem)


def _version(path: Path) -> tuple[int, int]:
    """(mtime in ns, size) of a file; (0, 0) where there is none or it can not be seen."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=_CACHED_RUNS)
def _config(path: Path, _mtime: int, _size: int) -> RunConfig:
    return load_config(path)


@lru_cache(maxsize=_CACHED_RUNS)
def _cached_bytes(path: Path, _mtime: int, _size: int) -> int:
    return _folder_bytes(path)


@lru_cache(maxsize=_CACHED_RUNS)
def _read_log(path: Path, _mtime: int, size: int) -> _LogFacts:
    """Facts of one version of a log. Only the few events that matter are parsed."""
    if size == 0:
        return _LogFacts()
    with open(path, "rb") as file:
        log = file.read(_MOST_LOG_BYTES)
        if size > _MOST_LOG_BYTES:  # its beginning and its end tell all but a very old best loss
            file.seek(max(_HEAD_BYTES, size - _MOST_LOG_BYTES + _HEAD_BYTES))
            log = log[:_HEAD_BYTES] + b"\n" + file.read(_MOST_LOG_BYTES)
    return _facts(log)


def _facts(log: bytes) -> _LogFacts:
    first = _find(log, events.Started, first=True)
    if not isinstance(first, events.Started):
        return _LogFacts(state="damaged", problem="Its log does not begin as a log of a run.")
    last = _find(log, events.Started)
    step, planned = _find(log, events.StepDone), _find(log, events.Planned)
    best, result = _find(log, events.Evaluated, b'"best": true'), _find(log, events.Result)
    state, problem = _outcome(log)
    resumed = isinstance(last, events.Started) and last != first
    return _LogFacts(
        state=state, problem=problem, started=first.time,
        last_started=last.time if isinstance(last, events.Started) else first.time,
        earlier_seconds=_earlier_seconds(log) if resumed else 0.0,
        train_seconds=_number(result.values.get("train_seconds")) if isinstance(result, events.Result) else None,
        steps_done=step.step if isinstance(step, events.StepDone) else 0,
        last_loss=step.loss if isinstance(step, events.StepDone) else None,
        steps_total=planned.total_steps if isinstance(planned, events.Planned) else 0,
        trainable_parameters=planned.trainable_parameters if isinstance(planned, events.Planned) else 0,
        best_validation_loss=best.loss if isinstance(best, events.Evaluated) else None)


def _outcome(log: bytes) -> tuple[RunState, str]:
    """The state that the last event of its kind tells, as RunFolder.state does, and a failure's sentence."""
    last = max((events.Started, events.Finished, events.Failed), key=lambda kind: log.rfind(_mark(kind)))
    event = _find(log, last)
    if isinstance(event, events.Finished):
        return event.outcome, ""
    if isinstance(event, events.Failed):
        return "stopped" if event.cancelled else "failed", "" if event.cancelled else event.message
    return "interrupted", ""


def _mark(kind: type) -> bytes:
    """How the line of such an event begins (`core.events.to_json` puts the name first)."""
    return f'{{"event": "{kind.__name__}"'.encode()


def _find(log: bytes, kind: type, holding: bytes = b"", first: bool = False) -> events.Event | None:
    """The last (or first) whole and sound event of a kind whose line holds these bytes."""
    mark = _mark(kind)
    position = log.find(mark) if first else log.rfind(mark)
    while position >= 0:
        end = log.find(b"\n", position)
        line = log[position:end] if end >= 0 else b""
        if line and holding in line:
            event = _parsed(line)
            if isinstance(event, kind):
                return event  # type: ignore[return-value]
        position = log.find(mark, position + 1) if first else log.rfind(mark, 0, position)
    return None


def _parsed(line: bytes) -> events.Event | None:
    try:
        return events.from_json(line)
    except ValueError:  # a damaged line hides only itself
        return None


def _earlier_seconds(log: bytes) -> float:
    """Time of what was done before the last start, from the events that tell theirs."""
    total = 0.0
    for line in log[: log.rfind(_mark(events.Started))].split(b"\n"):
        event = _parsed(line)
        if isinstance(event, events.StepDone | events.Evaluated | events.CheckpointSaved):
            total += event.seconds
    return total


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _folder_bytes(path: Path) -> int:
    """Size of all files below `path`; what vanishes or can not be read meanwhile counts nothing."""
    return sum(_version(Path(folder, name))[1] for folder, _, names in os.walk(path) for name in names)
