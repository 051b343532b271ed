"""One cell of the study, in a process of its own so that its memory is its own.

    python -m bench.study.run_cell CELL --out FOLDER --steps N --heldout N [--alpaca FILE]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.draining import finish
from bench.speed.machine import matrix_speed
from bench.study.cells import Cell, cells
from core import files
from core.config import RunConfig, load_config, with_overrides
from core.control import Control
from core.demo import answer_rows, peak_rss_bytes, read_held_out
from core.events import Evaluated, Finished, Planned, StepDone
from core.jobs import Train
from core.paths import SAMPLE_RUN_FILE
from core.runs.folder import RunFolder
from core.scoring import exact_match
from core.training.loop import train


def main() -> int:
    """Train, score, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--heldout", type=int, required=True)
    parser.add_argument("--alpaca", type=Path)
    parser.add_argument("--model", default="starter")
    options = parser.parse_args()
    cell = next(cell for cell in cells() if cell.name == options.cell)
    result = measure(cell, configured(cell, options.steps, options.alpaca, options.model), options.heldout)
    files.write_text(options.out / f"{cell.name}.json", json.dumps(result, indent=2) + "\n")
    return 0


def configured(cell: Cell, steps: int, alpaca: Path | None, model: str) -> RunConfig:
    """The run file of a cell: the sample's, with the task's data and the variant's changes."""
    changes = [f"training.seed={cell.seed}", f"training.max_steps={steps}", "training.epochs=100",
               "training.evaluate_every=0", "training.checkpoint_every=0", "training.dtype=fp32",
               "training.device=cpu", "data.validation_fraction=0.1", f"model.path={json.dumps(model)}"]
    if cell.task == "alpaca":
        changes += [f"data.train=[{json.dumps(str(alpaca))}]", "data.max_length=256",
                    "training.batch_size=4"]
    return with_overrides(load_config(SAMPLE_RUN_FILE), [*changes, *cell.variant.changes])


def measure(cell: Cell, config: RunConfig, heldout: int) -> dict[str, Any]:
    """Train the cell and say what came of it; `cpu_seconds` are those of the training, its evaluations included."""
    speed = matrix_speed()
    result: dict[str, Any] = {"cell": cell.name, "task": cell.task, "variant": cell.variant.name,
                              "title": cell.variant.title, "seed": cell.seed, "threads": torch.get_num_threads(),
                              "matrix_gflops": speed, "torch": torch.__version__, "steps": config.training.max_steps}
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        tokens, seconds, started = 0, 0.0, time.process_time()
        for event in train(Train(config, run.path), Control()):
            if isinstance(event, StepDone):
                tokens, seconds = tokens + event.tokens, seconds + event.seconds
                result["train_loss"] = event.loss
            elif isinstance(event, Planned):
                result["trainable_parameters"] = event.trainable_parameters
            elif isinstance(event, Evaluated):
                key = "validation_loss_before" if event.step == 0 else "validation_loss"
                result[key] = event.loss
            elif isinstance(event, Finished):
                result["outcome"] = event.outcome
        result |= {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds,
                   "cpu_seconds": time.process_time() - started, "peak_rss_bytes": peak_rss_bytes()}
        if cell.task == "orders":
            rows = read_held_out(SAMPLE_RUN_FILE.parent / "heldout.jsonl")[:heldout]
            answers = finish(answer_rows(config, run.final, rows, "Scoring", Control()))
            result |= {"exact_match": exact_match(answers, rows), "heldout_rows": len(rows)}
    return result


if __name__ == "__main__":
    sys.exit(main())
