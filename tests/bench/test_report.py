"""Medians, targets, the table, and how the turns become figures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.speed.cases import CASES, MAIN, config_of
from bench.speed.compare import AWAKE, figures_of
from bench.speed.merge import layers_of
from bench.speed.page import keep, write_page
from bench.speed.prefix import slowest_later_epoch
from bench.speed.report import Figure, Found, matrix_speeds, ratios, table

ROOT = Path(__file__).parents[2]


def side(speed: float, memory: float = 1e9, **more: float) -> dict[str, float]:
    return {"tokens_per_second": speed, "peak_rss_bytes": memory, "matrix_gflops": 100.0,
            "tokens_per_cpu_second": speed / 2, **more}


def test_the_median_counts_and_the_range_is_told() -> None:
    figure = Figure("speed", (2.0, 5.0, 2.5), 2.6)
    assert figure.median == 2.5
    assert figure.met is False
    assert figure.words == "2.50x (2.00x to 5.00x)"
    assert Figure("memory", (0.1, 0.3, 0.19), 0.2, "most").met is True
    assert Figure("speed", (3.0,)).met is None


def test_the_table_says_what_was_met() -> None:
    lines = list(table([Figure("speed", (3.0,), 2.6, note="batch 8"), Figure("memory", (0.3,), 0.2, "most", "{:.2f}"),
                        Figure("merge", (), 1.5, "most"), Figure("ours", (300.0,), form="{:.0f}")]))
    assert lines[2:] == ["| speed (batch 8) | ≥ 2.60x | 3.00x | met |", "| memory | ≤ 0.20 | 0.30 | MISSED |",
                         "| merge | ≤ 1.50x | not measured |  |", "| ours |  | 300 |  |"]


def test_a_figure_is_json() -> None:
    plain = json.loads(json.dumps(Figure("speed", (3.0, 1.0), 2.6).plain()))
    assert plain["median"] == 2.0
    assert plain["met"] is False


def test_turns_are_compared_one_by_one() -> None:
    assert ratios([4.0, 1.0], [2.0, 1.0]) == (2.0, 1.0)
    with pytest.raises(ValueError, match="longer"):
        ratios([1.0], [1.0, 2.0])


def test_the_main_case_has_speed_roofline_memory_and_estimate() -> None:
    turns = [{"ours": side(500.0, 1e9, flops=60e9, seconds=1.0, estimated_bytes=1.2e9),
              "ordinary": side(200.0, 8e9), "best": side(250.0, 9e9), AWAKE: side(400.0, 9e9)}]
    found = [figure.median for figure in figures_of(CASES[0], turns)]
    assert CASES[0].name == MAIN
    assert found == pytest.approx([2.5, 2.0, 1.25, 2.5, 2.0, 500.0, 0.6, 0.125, 1.0, 0.2])
    other = figures_of(CASES[1], turns)
    assert [(figure.median, figure.met) for figure in other] == [(2.0, True), (2.5, True)]


def test_the_slowest_epoch_after_the_first_counts() -> None:
    steps = [{"epoch": epoch, "tokens": 10, "seconds": seconds}
             for epoch, seconds in ((0.5, 9.0), (1.0, 9.0), (1.5, 1.0), (2.0, 1.0), (2.5, 2.0), (3.0, 2.0))]
    assert slowest_later_epoch(steps) == 5.0


def test_both_sides_are_told_the_same(tmp_path: Path) -> None:
    for case in CASES:
        config = config_of(case, "starter", tmp_path / "rows.json", 5)
        assert (config.training.batch_size, config.data.max_length) == (case.batch, case.length)
        assert config.adapter.method == "lora"
        assert config.adapter.dropout == 0
        assert config.training.warmup_steps == 0
        assert config.data.validation_fraction == 0


def test_sizes_of_the_merged_model_and_matrix_speeds() -> None:
    assert layers_of(13.5) == 32
    assert layers_of(0.1) == 1
    assert list(matrix_speeds({"main": [{"ours": {"matrix_gflops": 1.0}}, {"x": 2}], "y": "text"})) == [1.0]


def test_what_is_kept_stands_on_the_page(tmp_path: Path) -> None:
    machine = {"device": "cpu, X", "threads": 2, "instructions": "AVX2", "torch": "2", "transformers": "5", "peft": "0",
               "matrix_gflops": 90.0}
    found = Found((Figure("speed", (1.0, 3.0, 2.0), 2.5), Figure("memory", (0.1,), 0.2, "most")),
                  {"main": [{"ours": {"matrix_gflops": 100.0}}]})
    keep(tmp_path / "kept", "main", machine, found)
    profile = {"case": "main", "matrix_gflops": 100.0, "seconds": 8.0, "steps": 4,
               "table": {"attention": {"share": 0.125, "gflops": None}, "products": {"share": 0.5, "gflops": 95.2}}}
    (tmp_path / "kept" / "profile.json").write_text(json.dumps(profile), encoding="utf-8")
    write_page(tmp_path / "kept", ["other", "main"], tmp_path / "speed.md")
    page = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert "| speed | ≥ 2.50x | 2.00x (1.00x to 3.00x) | MISSED |" in page
    assert "| memory | ≤ 0.20x | 0.10x | met |" in page
    assert re.search(r"- main: 3 values for a figure, \d{4}-\d\d-\d\d, on cpu, X, 2 threads", page)
    assert "at 100 to 100 GFLOP/s" in page
    assert "| attention | 12.5% |  |" in page
    assert "| products | 50.0% | 95 |" in page
    assert "2.0 s a step" in page


def test_the_measuring_side_is_light() -> None:
    code = "import bench.training, sys; assert not {'torch', 'transformers', 'peft'} & set(sys.modules), 'heavy'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
