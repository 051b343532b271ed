"""Growing series: buffers, moving average, NaN, the table."""

import csv
import io
import math
import time

import numpy as np
import pytest

from app.series import RunSeries, Series, as_csv, smooth
from core import events


def step_done(step: int, loss: float = 1.0, **values: float) -> events.StepDone:
    base = {"epoch": 0.0, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 100, "supervised_tokens": 50,
            "seconds": 0.5, "rss_bytes": 2_000_000_000, "device_bytes": 0}
    return events.StepDone(step=step, loss=loss, **{**base, **values})  # type: ignore[arg-type]


def reference_average(values: list[float], weight: float) -> list[float]:
    average, correction, result = 0.0, 1.0, []
    for value in values:
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            correction *= weight
        result.append(average / (1 - correction) if correction < 1 else math.nan)
    return result


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9, 0.99, 0.999])
def test_moving_average_live_equals_the_whole_and_the_definition(weight: float) -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 5000)
    values[[0, 17, 18, 4000]] = [np.nan, np.nan, np.inf, -np.inf]
    series = Series(weight)
    for step, value in enumerate(values):
        series.append(step, value)
    expected = reference_average(list(values), weight)
    np.testing.assert_allclose(series.smoothed, expected, rtol=1e-9)
    np.testing.assert_allclose(smooth(values, weight), expected, rtol=1e-9)
    assert series.non_finite == 4


def test_smoothing_is_changed_in_the_middle() -> None:
    series = Series(0.9)
    values = list(np.random.default_rng(1).normal(size=300))
    for step, value in enumerate(values[:200]):
        series.append(step, value)
    series.set_smoothing(0.5)
    for step, value in enumerate(values[200:], 200):
        series.append(step, value)
    np.testing.assert_allclose(series.smoothed, reference_average(values, 0.5), rtol=1e-9)


def test_a_million_points_are_smoothed_quickly() -> None:
    series = Series()
    series._steps.replace(np.arange(1e6))
    series._values.replace(np.random.default_rng(0).normal(size=1_000_000))
    begin = time.perf_counter()
    series.set_smoothing(0.5)
    assert time.perf_counter() - begin < 2.0
    assert len(series.smoothed) == 1_000_000


def test_a_resumed_run_replaces_the_steps_it_repeats() -> None:
    series = Series(0.9)
    for step in range(1, 11):
        series.append(step, float(step))
    series.append(6, 60.0)
    assert list(series.steps) == [1, 2, 3, 4, 5, 6]
    assert series.last() == 60.0
    np.testing.assert_allclose(series.smoothed, reference_average([1, 2, 3, 4, 5, 60], 0.9))


def test_only_nan() -> None:
    series = Series(0.9)
    series.append(1, math.nan)
    assert math.isnan(series.smoothed[0])
    assert math.isnan(series.value_at(0)) and math.isnan(Series().last())


def test_value_at_a_step() -> None:
    series = Series(0.0)
    series.append(10, 1.0)
    series.append(20, 2.0)
    assert [series.value_at(step) for step in (10, 19, 20, 99)] == [1.0, 1.0, 2.0, 2.0]


def test_run_series_from_events() -> None:
    log = [events.Note("x"), step_done(1, 2.0), step_done(2, 1.0, device_bytes=3_000_000_000),
           events.Evaluated(2, 1.5, 10, 0.1, True), step_done(3, 0.5, seconds=0.0)]
    run = RunSeries.from_events(log)
    assert list(run.loss.values) == [2.0, 1.0, 0.5]
    assert list(run.memory.values) == [2.0, 3.0, 2.0]
    assert list(run.tokens_per_second.values[:2]) == [200.0, 200.0] and math.isnan(run.tokens_per_second.last())
    assert list(run.validation_loss.steps) == [2]
    assert not run.add(events.Note("y"))


def test_csv_has_a_line_for_each_step_and_no_formulas() -> None:
    run = RunSeries.from_events([step_done(1, 2.0), step_done(2, math.nan), events.Evaluated(2, 0.25, 1, 0.1, True)])
    rows = list(csv.DictReader(io.StringIO(as_csv(run.everything()))))
    assert [row["loss"] for row in rows] == ["2.0", "nan"]
    assert [row["validation_loss"] for row in rows] == ["", "0.25"]
    table = as_csv({'=cmd("x"),y': run.loss})
    assert next(csv.reader(io.StringIO(table)))[1].startswith("'=cmd")
    assert as_csv({}) == "step\n"
