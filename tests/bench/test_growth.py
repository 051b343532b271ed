"""What is measured of growth, and the page that is written from it."""

import json
from pathlib import Path

from bench.curves.report import page
from bench.curves.sweeps import LAYERS, SWEEPS, config_of
from bench.growth import LARGE, work

POINT = {"tokens": 2048.0, "seconds": 16.0, "tokens_per_second": 128.0, "flops": 1e12, "matrix_gflops": 100.0,
         "peak_rss_bytes": 2e9, "estimated_bytes": 1.9e9}
ROWS = {"first_seconds": 2.0, "again_seconds": 0.5, "batch_milliseconds": 0.3, "prepare_peak_megabytes": 400.0,
        "epoch_peak_megabytes": 410.0}
FILE = {"rows": 1e6, "recognised_seconds": 0.31, "shown_seconds": 0.62, "megabytes_per_second": 104.0,
        "read_seconds": 9.9, "sampled": 20_000.0, "whole_seconds": 12.0, "peak_megabytes": 450.0,
        "peak_before_megabytes": 300.0}


def test_every_sweep_has_the_range_that_it_is_to_show() -> None:
    names = set(work("starter", [1_000, 1_000_000]))
    assert {"length.128", "length.4096", "rank.1", "rank.256", "batch.1", f"layers.{LAYERS}", "rows.1000",
            "rows.1000000", LARGE} <= names
    for sweep in SWEEPS:
        for point in sweep.points:
            config = config_of(point, "starter", Path("rows.jsonl"))
            assert (config.data.max_length, config.training.batch_size) == (point.length, point.batch)


def test_the_page_has_every_sweep_the_rows_and_the_large_file(tmp_path: Path) -> None:
    for name in work("starter", [1_000, 10_000]):
        found = ROWS if name.startswith("rows") else FILE if name == LARGE else POINT
        (tmp_path / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    text = page(tmp_path)
    for sweep in SWEEPS:
        assert f"## {sweep.title}" in text
        assert f"(growth-{sweep.name}.svg)" in text
    assert "| 256 | 128 | 0.488 | 62% | 2.00 GB | 1.90 GB |" in text
    assert "| 1,000 | 2.0 s | 0.5 s | 500 | 0.30 ms | 400 MB | 410 MB |" in text
    assert "1,000,000 rows of 1,000 bytes" in text
    assert "104 MB/s" in text


def test_a_sweep_without_results_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "rank.4.json").write_text(json.dumps(POINT), encoding="utf-8")
    assert page(tmp_path).count("## ") == 1
