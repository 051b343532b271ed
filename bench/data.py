"""A large dataset: how soon its first rows are shown, how fast it is read, and what training on it holds in memory.

    python bench/data.py MODEL_FOLDER [--rows 1000000] [--prepare 1000 10000 100000] [--file FILE] [--json OUT]

The file is made of the rows of FILE (../shared/data/alpaca_en_demo.json), each with a number of its own, in a
temporary folder that is removed. Every measurement is a process of its own, whose highest memory is told by the system.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data" / "alpaca_en_demo.json"


def make_file(path: Path, source: Path, rows: int, bytes_a_row: int) -> None:
    """JSON lines of `rows` rows, about `bytes_a_row` long in the mean."""
    found = json.loads(source.read_text("utf-8"))
    mean = sum(len(json.dumps(row)) + 1 for row in found) / len(found)
    filler = "Take your time. " * max(0, round((bytes_a_row - mean) / 16))
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            row = dict(found[number % len(found)])
            row["instruction"] = f"{number}: {row['instruction']} {filler}"
            file.write(json.dumps(row) + "\n")


def peak_bytes() -> int:
    """The highest memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _config(model: str, file: str):
    from core.config import DataConfig, ModelConfig, RunConfig

    return RunConfig(model=ModelConfig(path=model), data=DataConfig(train=(file,)))


def measure_open(model: str, file: str) -> dict[str, float]:
    """As the Data page does it on a warm engine: the first slice of the scan, then the first row."""
    from core import jobs
    from core.control import Control
    from core.data.preview import preview_rows
    from core.data.scan import scan_dataset
    from core.events import DataScanned, RowsPrepared

    run, warm = _config(model, file), {}
    list(preview_rows(jobs.PreviewRows(_config(model, str(SHARED))), Control(), warm))  # the tokenizer is loaded
    started = time.perf_counter()
    first = next(event for event in scan_dataset(jobs.ScanData(run, 0.5), Control(), warm)
                 if isinstance(event, DataScanned))
    recognised = time.perf_counter() - started
    shown = next(event for event in preview_rows(jobs.PreviewRows(run), Control(), warm)
                 if isinstance(event, RowsPrepared))
    assert first.format and shown.rows
    return {"recognised_seconds": recognised, "shown_seconds": time.perf_counter() - started}


def measure_scan(model: str, file: str) -> dict[str, float]:
    """A whole scan: reading, and then tokenising the sample."""
    from core import jobs
    from core.control import Control
    from core.data.scan import scan_dataset
    from core.events import DataScanned, Progress

    run, warm = _config(model, file), {}
    list(scan_dataset(jobs.ScanData(_config(model, str(SHARED))), Control(), warm))
    before = peak_bytes()
    size = Path(file).stat().st_size
    started, cpu, read = time.perf_counter(), time.process_time(), 0.0
    for event in scan_dataset(jobs.ScanData(run), Control(), warm):
        if isinstance(event, Progress) and event.done < size:
            read, read_cpu = time.perf_counter() - started, time.process_time() - cpu
        if isinstance(event, DataScanned):
            found = event
    return {"rows": found.rows, "sampled": found.sampled, "problems": len(found.problems), "read_seconds": read,
            "megabytes_per_second": size / read / 1e6, "megabytes_per_cpu_second": size / read_cpu / 1e6,
            "whole_seconds": time.perf_counter() - started, "peak_megabytes": peak_bytes() / 1e6,
            "peak_before_megabytes": before / 1e6}


def measure_prepare(model: str, file: str) -> dict[str, float]:
    """Tokenising all rows as a run does, then an epoch over them in random order, with no model."""
    import psutil

    from core.control import Control
    from core.data.batching import pack, step_rows
    from core.data.prepare import prepare_rows
    from core.models.load import load_tokenizer

    tokenizer = load_tokenizer(Path(model))
    data = _config(model, file).data

    def timed(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    kept = []

    def prepare() -> None:
        generator = prepare_rows(data, tokenizer, 0, Control())
        while True:
            try:
                next(generator)
            except StopIteration as end:
                kept.append(end.value)
                return

    before = psutil.Process().memory_info().rss
    first = timed(prepare)
    prepared_peak = peak_bytes()
    again = timed(prepare)
    train = kept[-1].train
    steps = -(-len(train) // 8)

    def fetch() -> None:
        for step in range(steps):
            pack([train[number] for number in step_rows(step, len(train), 8, 0)])

    fetching = timed(fetch)
    return {"rows": len(train) + len(kept[-1].validation), "first_seconds": first, "again_seconds": again,
            "start_megabytes": before / 1e6, "prepare_peak_megabytes": prepared_peak / 1e6,
            "epoch_peak_megabytes": peak_bytes() / 1e6, "batch_milliseconds": 1000 * fetching / steps}


def _measure(name: str, model: str, file: Path, home: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, model, "--only", name, "--file", str(file)], capture_output=True,
                          text=True, check=True, cwd=REPOSITORY,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY), "LORA_WORKBENCH_HOME": str(home)})
    return json.loads(done.stdout.splitlines()[-1])


def _show(title: str, figures: dict[str, float]) -> None:
    print(f"{title}: " + ", ".join(f"{name.replace('_', ' ')} {value:,.4g}" for name, value in figures.items()),
          flush=True)


def main() -> None:
    """Make the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--file", type=Path, default=SHARED)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large file; 0 leaves it out")
    parser.add_argument("--row-bytes", type=int, default=1000)
    parser.add_argument("--prepare", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("open", "scan", "prepare"), help="measure FILE itself, in this process")
    options = parser.parse_args()
    model = str(Path(options.model).resolve())
    if options.only:
        print(json.dumps({"open": measure_open, "scan": measure_scan, "prepare": measure_prepare}[options.only](
            model, str(options.file))))
        return
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home, large = Path(folder) / "home", Path(folder) / "large.jsonl"
        make_file(large, options.file, options.rows, options.row_bytes)
        print(f"{options.rows:,} rows, {large.stat().st_size / 1e6:,.0f} MB", flush=True)
        for name in ("open", "scan") if options.rows else ():
            figures[name] = _measure(name, model, large, home)
            _show(name, figures[name])
        large.unlink()
        for rows in options.prepare:
            part = Path(folder) / f"{rows}.jsonl"
            make_file(part, options.file, rows, 0)
            figures[f"prepare {rows}"] = _measure("prepare", model, part, home)
            _show(f"prepare {rows:,} rows", figures[f"prepare {rows}"])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), "utf-8")


if __name__ == "__main__":
    main()
