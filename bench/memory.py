"""The memory that the estimate names before Start, against the measured peak of the run itself.

    python bench/memory.py [--only TEXT] [--again] [--model starter] [--out FOLDER] [--table docs/memory.md]

Each row is `lora-workbench train` in a process of its own, two steps on rows that all have the greatest length.
The peak is that of the process as the system counts it (ru_maxrss), so a busy machine does not change it. What was
measured stays in build/memory; --again measures anew. Exit code 1 where an error is above the limit.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.filled_rows import write_filled_rows  # noqa: E402
from core.config import DataConfig, ModelConfig, RunConfig, TrainingConfig, dump_config, with_overrides  # noqa: E402
from core.estimate import PACK_TOKENS  # noqa: E402
from core.memory import PARTS  # noqa: E402
from core.openmp import set_wait_policy  # noqa: E402
from core.words import memory  # noqa: E402

LIMIT = 0.15  # of the measured peak
STEPS = 2
ALL_LINEAR = "adapter.target_modules=all-linear"
QUERY_VALUE = "adapter.target_modules=q-v"
WIDE = 'adapter.target_modules=["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]'


@dataclass(frozen=True)
class Case:
    """One configuration: what it is called, and how it differs from LoRA of rank 8 in fp32."""

    name: str
    batch: int
    length: int
    changes: tuple[str, ...] = ()


CASES = (
    Case("LoRA, query and value", 8, 512, (QUERY_VALUE,)),
    Case("LoRA, query and value", 1, 512, (QUERY_VALUE,)),
    Case("LoRA, query and value", 8, 128, (QUERY_VALUE,)),
    Case("LoRA, query and value", 1, 2048, (QUERY_VALUE,)),
    Case("LoRA, query and value, top third of the layers", 2, 512, (QUERY_VALUE, "adapter.first_layer=20")),
    Case("LoRA, all linear layers", 2, 512, (ALL_LINEAR,)),
    Case("LoRA of rank 64, all linear layers", 8, 128, (ALL_LINEAR, "adapter.rank=64")),
    Case("LoRA of rank 256, all linear layers that are wide enough", 1, 512, (WIDE, "adapter.rank=256")),
    Case("LoRA, all linear layers, bf16", 1, 512, (ALL_LINEAR, "training.dtype=bf16")),
    Case("QLoRA (NF4), all linear layers", 8, 128, ("adapter.method=qlora", ALL_LINEAR)),
    Case("DoRA, all linear layers", 2, 512, ("adapter.method=dora", ALL_LINEAR)),
    Case("Full fine-tuning", 1, 512, ("adapter.method=full",)),
    Case("Prefix of 20 tokens", 2, 512, ("adapter.method=none", "prefix.length=20")),
    Case("Bottleneck adapters of 64", 8, 128, ("adapter.method=none", "bottleneck.size=64")),
)


EXPLANATION = f"""\
## The parts

They are those of the moment of a step that needs most: where the forward pass has just ended, or, where activations
are small beside what is trained, where the optimizer works.

- **Weights**: the base in its number type; with QLoRA packed, with its scales.
- **Adapter**, **gradients**, **optimizer**: what is trained in fp32, its gradients (at that moment only where a step
  adds up several passes), and AdamW's two moments. In full fine-tuning what is trained are the weights.
- **Activations**: the tensors that autograd keeps for the backward pass, counted layer by layer from the lowest one
  in which something is trained. A test compares the count with what autograd keeps, for each method and family. Of a
  token in a layer of the Llama kind, with widths d of the stream, q of all queries and f of the MLP, and e bytes a
  number (4 or 2): the two norms 8 d in fp32, attention 4 q e and 4 bytes a head, the MLP 2 f e (3 f e where its gate
  is not one operation); the inputs of adapted layers in fp32, once for those that share it over a base in fp32, and
  4 r for each of them. A pass has at most {PACK_TOKENS} tokens (1,024 on a GPU), or one longer row; what rows begin
  with in common is kept beside it and within that number.
- **Output layer**: logits in pieces, and as much again while they are summed: of 768 entries of the vocabulary at once
  where the layer is frozen, in fp32 and on the CPU, else of 16.8 million numbers. Or, where that is more, the gradients
  of the top layer, which are there when the logits are gone.
- **Overhead**: Python and the libraries, the tokenizer, and the gaps that the C library leaves between blocks that
  come and go. The gaps are the one part that is not counted from tensors: with LoRA on query and value of the starter
  they were mostly between 40% and 65% of the activations, in passes of 512 to 4,096 tokens; 55% are told.
  Where a step needs less than the loading before it, at which the file of the model is there beside its weights, the
  rest is overhead, too.

`estimate --probe`, and Measure in the window, train two steps on the longest rows of the chosen data in a process of
its own and put what they measure in the place of the estimate."""


@dataclass(frozen=True)
class Measured:
    """What came of a case, in bytes."""

    case: Case
    peak: int
    estimate: int
    parts: dict[str, int]

    @property
    def error(self) -> float:
        """Of the estimate, as a share of the peak."""
        return self.estimate / self.peak - 1


def main() -> int:
    """Measure what is missing, print all, and write the table; 1 where the estimate is too far off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name holds TEXT")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured before")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "memory", help="where the measured peaks are kept")
    parser.add_argument("--table", type=Path, help="write the table there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    for number, case in enumerate(CASES, 1):
        if options.only in case.name:
            found.append(measure(number, case, options))
            told = found[-1]
            print(f"{case.name}, batch {case.batch}, length {case.length}: estimate {memory(told.estimate)}, measured "
                  f"{memory(told.peak)}, error {told.error:+.1%}", flush=True)
    if options.table:
        options.table.write_text(table(found, options.model), encoding="utf-8")
    return int(any(abs(each.error) > LIMIT for each in found))


def measure(number: int, case: Case, options: argparse.Namespace) -> Measured:
    """The estimate as it is now, beside the peak, which is measured once."""
    kept = options.out / f"{number:02}.json"
    folder = options.out / f"{number:02}"
    folder.mkdir(exist_ok=True)
    run_file = write_run_file(folder, case, options.model)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    set_wait_policy(environment)
    command = [sys.executable, "-m", "core", "estimate", str(run_file), "--json"]
    answer = subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    values = json.loads(answer.splitlines()[-1])
    if options.again or not kept.exists():
        run_dir = folder / f"run-{time.time():.0f}"
        peak = peak_of([sys.executable, "-m", "core", "train", str(run_file), "--run-dir", str(run_dir), "--json"],
                       environment, folder / "output.txt")
        kept.write_text(json.dumps({"name": case.name, "peak": peak}), encoding="utf-8")
    peak = json.loads(kept.read_text(encoding="utf-8"))["peak"]
    return Measured(case, peak, values["memory_bytes"], values["memory"])


def peak_of(command: list[str], environment: dict[str, str], output: Path) -> int:
    """The most memory that the process of a command held, in bytes."""
    with open(output, "w", encoding="utf-8") as told:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=told, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{output.read_text(encoding='utf-8')[-2000:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_run_file(folder: Path, case: Case, model: str) -> Path:
    """A run of two steps, and its data: answers longer than the greatest length."""
    data = folder / "rows.jsonl"
    write_filled_rows(data, STEPS * case.batch, case.length)
    config = RunConfig(
        model=ModelConfig(path=model),
        data=DataConfig(train=(str(data),), max_length=case.length, validation_fraction=0.0),
        training=TrainingConfig(batch_size=case.batch, max_steps=STEPS, warmup_steps=0, device="cpu", dtype="fp32"))
    run_file = folder / "run.toml"
    run_file.write_text(dump_config(with_overrides(config, list(case.changes))),
                        encoding="utf-8")
    return run_file


def table(found: list[Measured], model: str) -> str:
    """docs/memory.md."""
    largest = max(abs(each.error) for each in found)
    versions = f"{' '.join(platform.libc_ver())}, Python {platform.python_version()}, torch {metadata.version('torch')}"
    lines = [
        "# Memory: estimate and measurement", "",
        "What `lora-workbench estimate` and the bar on the Model and Method pages tell before the start, against the "
        f"peak of the run. Written by `python bench/memory.py --table docs/memory.md`; model `{model}`, on the CPU, "
        f"{platform.system()}, {versions}. Each row is a `lora-workbench train` of {STEPS} steps on rows that all have "
        f"the greatest length; the peak is what the system counted for its process. Largest error {largest:.1%}, limit "
        f"{LIMIT:.0%}.", "",
        "| run | batch | length | estimate | measured | error |", "| --- | --- | --- | --- | --- | --- |",
        *(f"| {each.case.name} | {each.case.batch} | {each.case.length:,} | {memory(each.estimate)} | "
          f"{memory(each.peak)} | {each.error:+.1%} |" for each in found),
        "", EXPLANATION, "", f"| run | {' | '.join(PARTS)} |", "| --- " * (len(PARTS) + 1) + "|",
        *(f"| {each.case.name}, {each.case.batch} x {each.case.length:,} | "
          f"{' | '.join(memory(each.parts[part]) if each.parts[part] else '' for part in PARTS)} |" for each in found),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
