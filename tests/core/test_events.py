import dataclasses
import json
import math
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import jobs
from core.config import ModelConfig, RunConfig
from core.errors import Cancelled, CoreError, describe
from core.events import EVENT_TYPES, Failed, Note, Result, StepDone, from_json, to_json, to_plain

FILLED: dict[type, Any] = {int: 3, float: 1.5, str: 'ü "quoted" \u2028', bool: True, Path: Path("folder/file")}


def filled(kind: type) -> Any:
    """An event of a kind with a value in every field, made from the fields' types."""
    hints = typing.get_type_hints(kind)
    return kind(**{field.name: value_for(hints[field.name]) for field in dataclasses.fields(kind)})


def value_for(hint: Any) -> Any:
    if hint in FILLED:
        return FILLED[hint]
    if dataclasses.is_dataclass(hint):
        return filled(typing.cast("type", hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return arguments[-1]
    if origin is tuple:
        long = arguments[-1] is Ellipsis  # any number of one kind, or one of each
        return tuple(value_for(item) for item in ((arguments[0], arguments[0]) if long else arguments))
    if origin is dict:
        return {"name": 1}
    return value_for(arguments[0])  # a union: its first member


@pytest.mark.parametrize("kind", EVENT_TYPES.values(), ids=EVENT_TYPES)
def test_every_event_survives_json(kind: type) -> None:
    event = filled(kind)
    line = to_json(event)
    assert "\n" not in line
    assert json.loads(line)["event"] == kind.__name__
    assert line.startswith(f'{{"event": "{kind.__name__}"')  # the history of runs searches for this
    assert from_json(line) == event
    assert from_json(line.encode()) == event


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 0.1 + 0.2, 1e-300, -0.0])
def test_numbers_arrive_exactly_also_those_that_are_not_finite(number: float) -> None:
    event = StepDone(1, 0.5, number, 1e-3, number, 10, 5, 0.1, 1000)
    line = to_json(event)
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = from_json(line)
    assert isinstance(back, StepDone)
    assert math.copysign(1, back.loss) == math.copysign(1, number) or math.isnan(number)
    assert back.loss == number or (math.isnan(back.loss) and math.isnan(number))


@given(st.text())
def test_any_text_makes_one_line_of_utf_8(text: str) -> None:
    line = to_json(Note(text)).encode("utf-8")
    back = from_json(line)
    assert isinstance(back, Note)
    assert back.message == text.encode("utf-8", "replace").decode("utf-8")
    assert b"\n" not in line


def test_the_values_of_a_result_stand_beside_its_name() -> None:
    result = Result({"run_dir": Path("a/b"), "loss": math.nan, "list": (1, 2)})
    assert to_plain(result) == {"event": "Result", "run_dir": str(Path("a/b")), "loss": "NaN", "list": [1, 2]}


@pytest.mark.parametrize("line", ["", "{}", "[]", "1", "null", '{"event": "Nonsense"}', '{"event": "Note"}',
                                  '{"event": 3}', '{"event": "StepDone", "step": "many"}', '{"event": "Note", "mess'])
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        from_json(line)


def test_a_failure_is_told_in_plain_words() -> None:
    known = Failed.of(CoreError("The file is empty.", "Choose another.", "line 1 of log"))
    assert (known.message, known.hint, known.cancelled) == ("The file is empty.", "Choose another.", False)
    assert "line 1 of log" in known.details
    assert Failed.of(Cancelled()).cancelled
    unexpected = Failed.of(KeyError("secret"))
    assert "secret" not in unexpected.message
    assert "KeyError" in unexpected.message
    assert unexpected.hint


@pytest.mark.parametrize(("error", "words"), [
    (OSError(28, "No space left on device", "/a/b"), "disk is full (/a/b)"),
    (PermissionError(13, "Permission denied", "/a"), "No permission"),
    (FileNotFoundError(2, "No such file", "/a"), "does not exist (/a)"),
    (MemoryError(), "not enough memory"),
    (RuntimeError("CUDA out of memory. Tried to allocate"), "not enough memory")])
def test_errors_of_the_system_in_words(error: Exception, words: str) -> None:
    assert words in describe(error).message


@pytest.mark.parametrize("job", [
    jobs.Train(RunConfig(model=ModelConfig(path="starter")), Path("run")), jobs.Train(RunConfig()),
    jobs.Resume(Path("run")), jobs.ListModels(), jobs.PrepareStarter(), jobs.InspectModel("starter"),
    jobs.ImportGguf(Path("a.gguf")), jobs.DownloadModel("a/b"), jobs.ScanData(RunConfig()),
    jobs.PreviewRows(RunConfig(), 3, 2, "ü"),
    jobs.Generate("m", Path("a"), {"base": (("user", "hi"), ("assistant", "ho"))}, 0.7),
    jobs.Export(Path("run"), "merged", Path("out"), dtype="bf16"), jobs.Unload()], ids=lambda job: type(job).__name__)
def test_every_job_survives_json(job: jobs.Job) -> None:
    assert jobs.from_plain(json.loads(jobs.to_json(job))) == job


def test_what_is_no_job_is_refused() -> None:
    with pytest.raises(ValueError):
        jobs.from_plain({"job": "Nonsense"})
