import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import jobs
from core.control import Control
from core.engine import job_table
from core.engine.job_table import GENERATORS, JobRunner, find_generator, run_job
from core.errors import CoreError, EngineError
from core.events import Event, Result


def test_every_job_has_its_generator() -> None:
    assert {*GENERATORS, jobs.Unload} == set(jobs.JOB_TYPES.values())
    for kind in GENERATORS:
        assert callable(find_generator(kind))


def test_an_unknown_job_is_refused() -> None:
    with pytest.raises(EngineError):
        find_generator(str)


def test_unload_empties_what_is_kept_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    def keeps(job: jobs.Job, control: Control, warm: dict[str, object]) -> Iterator[Event]:
        count = warm["calls"] = int(str(warm.get("calls", 0))) + 1
        yield Result({"calls": count})

    monkeypatch.setattr(job_table, "find_generator", lambda kind: keeps)
    runner = JobRunner()
    job = jobs.InspectModel("")
    calls = [next(iter(runner(each, Control()))) for each in (job, job, jobs.Unload(), job)]
    assert calls == [Result({"calls": 1}), Result({"calls": 2}), Result({}), Result({"calls": 1})]


def test_the_command_line_runs_a_job_without_an_engine() -> None:
    assert list(run_job(jobs.Unload(), Control())) == [Result({})]


def test_a_training_that_failed_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is kept until it is told; the model must not stay on the GPU with it."""
    class Model:
        pass

    held: list[weakref.ref[Model]] = []

    def failing(job: jobs.Job, control: Control) -> Iterator[Event]:
        model = Model()
        held.append(weakref.ref(model))
        yield Result({})
        raise CoreError("no")

    monkeypatch.setattr(job_table, "find_generator", lambda kind: failing)
    with pytest.raises(CoreError) as caught:
        list(JobRunner()(jobs.Resume(Path("run")), Control()))
    assert caught.value.message == "no" and held[0]() is None
