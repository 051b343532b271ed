"""What can be typed after `lora-workbench`. No room that needs torch is imported to find that out."""

import argparse
import re
from pathlib import Path

from core.cli import commands, texts
from core.cluster import Machines
from core.jobs import AdapterUse

_OVERRIDE = re.compile(r"[a-z_]+\.[a-z_]+=")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)
_SIZE_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def spread_overrides(arguments: list[str]) -> list[str]:
    """Turn `--set a.b=1 c.d=2 run.toml` into `--set=a.b=1 --set=c.d=2 run.toml`.

    Argparse alone would either take one value for each --set or swallow the run file as well.
    """
    spread: list[str] = []
    first = more = False  # the next argument is an override; it is one if it looks like one
    for argument in arguments:
        if argument == "--set":
            first = True
        elif first or (more and _OVERRIDE.match(argument)):
            spread.append(f"--set={argument}")
            first, more = False, True
        else:
            spread.append(argument)
            more = False
    return [*spread, "--set"] if first else spread  # a bare --set at the end: argparse explains


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands.

    Each sets `command` (options, control -> events, the last a Result) and `text` (that Result in words).
    """
    parser = argparse.ArgumentParser(
        prog="lora-workbench",
        description="Fine-tune language models with LoRA on this machine. Without a sub-command the window opens.",
    )
    names = parser.add_subparsers(title="sub-commands", metavar="NAME", required=True)
    _add_demo(names)
    _add_init(names)
    _add_train(names)
    _add_resume(names)
    _add_cluster(names)
    _add_export(names)
    _add_mix(names)
    _add_chat(names)
    _add_inspect(names)
    _add_estimate(names)
    _add_check_data(names)
    _add_models(names)
    _add_import(names)
    _add_download(names)
    return parser


def byte_count(text: str) -> int:
    """`2GB`, `500 MB` or `1000000` as bytes."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2GB or 500MB")
    return round(float(found[1]) * _SIZE_FACTORS[found[2].lower()])


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def adapter_use(text: str) -> AdapterUse:
    """`runs/a=0.7` as a folder and its strength; without a strength it is 1."""
    folder, equals, strength = text.rpartition("=")
    if not equals or Path(text).exists():
        return AdapterUse(Path(text))
    return AdapterUse(Path(folder), _number_within(strength, -100.0, 100.0))


def temperature(text: str) -> float:
    """From 0 to 10."""
    return _number_within(text, 0.0, 10.0)


def share(text: str) -> float:
    """More than 0, at most 1."""
    return _number_within(text, 1e-6, 1.0)


def _number_within(text: str, low: float, high: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
    return number


def _add_demo(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("demo", help="train the starter model on the sample task and measure what it learned")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="the run folder (default: a new one)")
    parser.add_argument("--rows", type=count, metavar="N", help="score only so many held-out rows (default: all)")
    _add_overrides(parser)
    _finish(parser, commands.demo, texts.demo)


def _add_init(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("init", help="write a run file to start from")
    parser.add_argument("run_file", type=Path, metavar="RUN.toml")
    parser.add_argument("--model", metavar="starter|NAME|PATH", help="the base model (default: the starter model, or "
                        "with --from the one on this machine that fits)")
    parser.add_argument("--data", type=Path, metavar="FILE", help="training rows (default: the sample task)")
    parser.add_argument("--from", dest="start", type=Path, metavar="ADAPTER",
                        help="go on from this adapter or run, with its own settings")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    _finish(parser, commands.init, texts.init)


def _add_train(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("train", help="train an adapter as a run file says")
    parser.add_argument("run_file", type=Path, metavar="RUN.toml")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="the run folder itself (default: a new one)")
    _add_overrides(parser)
    _finish(parser, commands.train, texts.train)


def _add_resume(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("resume", help="go on with a run that was interrupted or stopped")
    parser.add_argument("run_dir", type=Path, metavar="RUNDIR")
    _finish(parser, commands.resume, texts.train)


def _add_cluster(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("cluster", help="write a SkyPilot task and a Slurm script for a run file")
    parser.add_argument("run_file", type=Path, metavar="RUN.toml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--nodes", type=count, default=Machines.nodes, metavar="N", help="machines (default: 1)")
    parser.add_argument("--gpus", type=count, default=Machines.gpus, metavar="N", help="GPUs of each (default: 8)")
    parser.add_argument("--gpu", default=Machines.gpu, metavar="NAME",
                        help="their kind, as SkyPilot names it (default: A100)")
    _add_overrides(parser)
    _finish(parser, commands.cluster, texts.cluster)


def _add_export(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("export", help="take the adapter or a merged model away, with a receipt")
    parser.add_argument("run_dir", type=Path, metavar="RUNDIR|ADAPTER")
    parser.add_argument("--to", choices=("adapter", "merged"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    parser.add_argument("--checkpoint", default="", metavar="NAME", help="such as step-000200 (default: the final one)")
    parser.add_argument("--dtype", choices=("base", "fp32", "bf16", "fp16"), default="base",
                        help="number type of the files (default: as in the base model or the adapter)")
    parser.add_argument("--shard-size", type=byte_count, default=0, metavar="SIZE",
                        help="largest weight file, such as 2GB (default: the base model's own files)")
    parser.add_argument("--no-receipt", action="store_true", help="do not load the result again to compare it")
    parser.add_argument("--form", choices=("peft", "compatible"), default="peft",
                        help="of an adapter: as it is, or so that vLLM and llama.cpp read it right too")
    parser.add_argument("--base", default="", metavar="NAME|PATH", help="the base model of an adapter made elsewhere")
    parser.add_argument("--merge-into", choices=("original", "dequantised"), default="original",
                        help="after QLoRA: the base's own weights, or those that training saw")
    _finish(parser, commands.export, texts.export)


def _add_mix(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("mix", help="write a weighted mix of adapters of one base as a new adapter")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")
    parser.add_argument("adapters", type=adapter_use, nargs="+", metavar="ADAPTER=STRENGTH",
                        help="a run or adapter folder and how strongly it counts, such as runs/a=0.7")
    parser.add_argument("--how", choices=("linear", "cat", "svd"), default="cat",
                        help="cat is exact and adds up the ranks; svd comes closest with --rank; linear is rough")
    parser.add_argument("--rank", type=count, default=0, metavar="N", help="of svd (default: the largest of them)")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="number type of the file")
    _finish(parser, commands.mix, texts.mix)


def _add_chat(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("chat", help="ask a run's tuned model, or a base model")
    parser.add_argument("source", metavar="RUNDIR|MODEL")
    parser.add_argument("--prompt", help="one question; without it a conversation begins")
    parser.add_argument("--system", default="", help="the system message")
    parser.add_argument("--compare", action="store_true", help="let the base model of the run answer as well")
    parser.add_argument("--adapter", type=adapter_use, action="append", default=[], dest="adapters",
                        metavar="ADAPTER=STRENGTH", help="another adapter beside it; may be given several times")
    parser.add_argument("--checkpoint", default="", metavar="NAME", help="such as step-000200 (default: the final one)")
    parser.add_argument("--temperature", type=temperature, default=0.0, help="0 always takes the most likely token")
    parser.add_argument("--top-p", type=share, default=1.0)
    parser.add_argument("--max-new-tokens", type=count, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16"))
    _finish(parser, commands.chat, texts.chat)


def _add_inspect(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("inspect", help="tell what a model, run folder or adapter is")
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--base", default="", metavar="NAME|PATH",
                        help="the base model to compare an adapter with (default: the one it was trained on)")
    _finish(parser, commands.inspect, texts.inspect)


def _add_estimate(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("estimate", help="count parameters and memory of a run before it starts")
    parser.add_argument("run_file", type=Path, metavar="RUN.toml")
    parser.add_argument("--probe", action="store_true", help="train a step on the longest rows and measure its peak")
    _add_overrides(parser)
    _finish(parser, commands.estimate, texts.estimate)


def _add_check_data(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("check-data", help="measure a dataset with a model's tokenizer and find its problems")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--model", required=True, metavar="starter|NAME|PATH")
    _add_overrides(parser)
    _finish(parser, commands.check_data, texts.check_data)


def _add_models(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("models", help="list the models on this machine")
    _finish(parser, commands.models, texts.models)
    parser.set_defaults(json_rows="models")


def _add_import(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("import", help="put a GGUF file into the model library, dequantised to bf16")
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    _finish(parser, commands.import_model, texts.path)


def _add_download(names: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = names.add_parser("download", help="fetch a model from the Hugging Face hub into the model library")
    parser.add_argument("repo_id", metavar="OWNER/NAME")
    parser.add_argument("--revision", default="main")
    _finish(parser, commands.download, texts.path)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.NAME=VALUE",
                        help="replace a setting, such as adapter.rank=16")


def _finish(parser: argparse.ArgumentParser, command: commands.Command, text: texts.ResultText) -> None:
    parser.add_argument("--json", action="store_true", help="print every event as one line of JSON")
    parser.set_defaults(command=command, text=text, json_rows="")
