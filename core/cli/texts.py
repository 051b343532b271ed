"""The results of the sub-commands in words."""

from collections.abc import Iterable, Mapping
from typing import Any

from core import words
from core.cli.screen import ResultText

__all__ = ["ResultText", "chat", "check_data", "cluster", "demo", "estimate", "export", "init", "inspect", "mix",
           "models", "path", "train"]

_LONGEST_ANSWER = 200  # characters of an example
_EXACT = 1e-5  # relative; what rounding to fp32 leaves


def init(values: Mapping[str, Any]) -> str:
    """After `init`: what was written and what comes next."""
    return (f"{values['path']} is written: it trains {values['model']} on {', '.join(values['data'])}.\n"
            f'Next: lora-workbench train "{values["path"]}"')


def train(values: Mapping[str, Any]) -> str:
    """After `train` and `resume`: what came out and where it lies."""
    finished = values["outcome"] == "finished"
    loss = values.get("validation_loss")
    lines = [f"{'Finished' if finished else 'Stopped'} after {words.plural(values['steps'], 'step')} "
             f"in {words.duration(values['train_seconds'])}."]
    if loss is not None:
        what = "model" if "model" in values else "adapter"
        lines.append(f"The {what} of step {values['adapter_step']:,} is the best: validation loss {loss:.4f}.")
    lines += [f"Run folder: {values['run_dir']}",
              f"Model:      {values['model']}" if "model" in values else f"Adapter:    {values['adapter']}"]
    following = "chat" if finished else "resume"
    return "\n".join([*lines, f'Next: lora-workbench {following} "{values["run_dir"]}"'])


def cluster(values: Mapping[str, Any]) -> str:
    """After `cluster`: what was written and what it is for."""
    run_file, task, job = values["files"]
    return (f"{run_file} is the run file for other machines.\n"
            f'On machines of a cloud, with SkyPilot: sky launch "{task}"\nOn a cluster with Slurm: sbatch "{job}"')


def demo(values: Mapping[str, Any]) -> str:
    """After `demo`: five examples, the score before and after, and what it cost."""
    receipt = values["receipt"]
    return "\n".join([
        *(_example(example) for example in values["examples"]),
        f"Exact answers on held-out orders: {words.percent(values['exact_match_before'])} before, "
        f"{words.percent(values['exact_match_after'])} after.",
        f"Training took {words.duration(values['train_seconds'])} at {values['tokens_per_second']:,.0f} tokens/s; "
        f"the most memory in use was {words.memory(values['peak_rss_bytes'])}.",
        f"Receipt of the exported adapter: {_verdict(receipt['passed'])} {receipt['explanation']}",
        f"Run folder: {values['run_dir']}",
        f'Next: lora-workbench chat "{values["run_dir"]}" --compare',
    ])


def _example(example: Mapping[str, Any]) -> str:
    return (f"Order:    {example['prompt']}\n"
            f"  before  {_one_line(example['before'])}\n"
            f"  after   {_one_line(example['after'])}  {'✓' if example['right'] else '✗'}\n"
            + ("" if example["right"] else f"  right   {_one_line(example['expected'])}\n"))


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _LONGEST_ANSWER else f"{flat[:_LONGEST_ANSWER]}…"


def export(values: Mapping[str, Any]) -> str:
    """After `export`: the receipt's verdict, its figures, and where the files lie."""
    lines = [f"{_verdict(values['passed'])} {values['explanation']}"]
    if values["largest_difference"] is not None:
        lines.append(f"Largest difference of a logit: {values['largest_difference']:.3g}; "
                     f"relative error of the weight change: {values['realised_delta_error']:.3g}")
    return "\n".join([*lines, f"{words.size(values['bytes'])} in {values['path']}"])


def _verdict(passed: bool | None) -> str:
    return {True: "✓ Passed.", False: "✗ NOT passed; do not use these files.", None: "Not checked."}[passed]


def chat(values: Mapping[str, Any]) -> str:
    """The answer stands on the screen already."""
    return ""


def path(values: Mapping[str, Any]) -> str:
    """After an import: where the model lies."""
    return f"{values['name']} is in the model library: {values['path']}"


def mix(values: Mapping[str, Any]) -> str:
    """After `mix`: what was written, and how close it is to the exact sum."""
    error = values["relative_error"]
    close = "It is the exact weighted sum." if error < _EXACT else f"It differs from the weighted sum by {error:.2%}."
    return (f"A mix of rank {values['rank']} in {words.plural(values['modules'], 'module')}. {close}\n"
            f"{words.size(values['bytes'])} in {values['path']}")


def inspect(values: Mapping[str, Any]) -> str:
    """What a model, run folder or adapter is, a fact to a line."""
    if values.get("kind") == "adapter":
        return adapter(values)
    return table(_readable(name, value) for name, value in values.items() if value not in (None, "", [], ()))


def adapter(values: Mapping[str, Any]) -> str:
    """What an adapter is, its modules by kind, and who reads it."""
    matches = values["bases_here"]
    bases = ", ".join(f"{match['name']} ({_MATCHES[match['match']]})" for match in matches) or "none that fits"
    rows = [
        ("adapter", values["path"]), ("method", values["method"]),
        ("size", f"{values['parameters']:,} parameters, {words.size(values['adapter_bytes'])} in {values['dtype']}"),
        ("base model", values["base_model"] or "not told"), ("on this machine", bases), ("origin", values["origin"]),
        *_kinds(values["modules"]),
        *((f"read by {verdict['loader']}", f"{verdict['reads']}. {verdict['why']}") for verdict in values["loaders"]),
    ]
    improved = {verdict["loader"] for verdict in values["compatible_form"] if verdict["reads"] == "exactly"} - {
        verdict["loader"] for verdict in values["loaders"] if verdict["reads"] == "exactly"}
    if improved:
        rows.append(("compatible form", f"`export --form compatible` is read exactly by {', '.join(sorted(improved))} "
                                        "as well"))
    rows.append(("training", "can go on from it" if values["goes_on"] else f"can not go on: {values['why_not']}"))
    return table(rows)


_MATCHES = {"same": "the one it was trained on", "fits": "its shapes fit"}


def _kinds(modules: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    """A row for each kind of module: how many, rank, scale, and how strongly they change."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for module in modules:
        kinds.setdefault(module["name"].rpartition(".")[2], []).append(module)
    for kind, group in kinds.items():
        ranks, scales = {module["rank"] for module in group}, {module["scale"] for module in group}
        shares = [module["share"] for module in group if module["share"] is not None]
        norms = [module["delta_norm"] for module in group if module["delta_norm"] is not None]
        changed = f", changes the weights by {sum(shares) / len(shares):.2%}" if shares else (
            f", norm of the change {sum(norms) / len(norms):.3g}" if norms else "")
        yield kind, f"{len(group)} x rank {_span(ranks)}, scale {_span(scales)}{changed}"


def _span(values: set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def estimate(values: Mapping[str, Any]) -> str:
    """Parameters, sizes, memory by part, and the problems."""
    share = values["trainable_parameters"] / values["total_parameters"] if values["total_parameters"] else 0.0
    rows = [
        ("parameters trained", f"{values['trainable_parameters']:,} of {values['total_parameters']:,} "
                               f"({words.percent(share)}) in {words.plural(values['targets'], 'module')}"),
        ("saved at the end", words.size(values["adapter_bytes"])),
        ("each checkpoint", words.size(values["checkpoint_bytes"])),
        ("memory, measured" if "measured_bytes" in values else "memory, about", words.size(values["memory_bytes"])),
        *((f"  {part}", words.size(size)) for part, size in values["memory"].items()),
        *([("  was estimated", words.size(values["estimated_bytes"]))] if "measured_bytes" in values else []),
    ]
    problems = [f"Problem at {problem['field']}: {problem['message']} {problem['hint']}".rstrip()
                for problem in values["problems"]]
    advice = [f"Unwise at {item['field']}: {item['message']} {item['hint']}".rstrip() for item in values["advice"]]
    return "\n".join([table(rows), *values["assumptions"], *problems, *advice])


def check_data(values: Mapping[str, Any]) -> str:
    """What a dataset holds and what is wrong with it."""
    about = "about " if values["sampled"] else ""
    rows = [
        ("format", values["format"]),
        ("rows", f"{values['rows']:,}"),
        ("tokens", f"{about}{values['tokens']:,}, of them {values['supervised_tokens']:,} are learned from"),
        ("longest row", words.plural(values["longest"], "token")),
        ("rows cut at the limit", f"{about}{values['rows_cut']:,}"),
        ("rows that teach nothing", f"{about}{values['rows_without_supervision']:,}"),
    ]
    if about:
        rows.append(("tokenised", f"{values['sampled']:,} rows, spread over all of the data"))
    problems = [f"Problem: {problem}" for problem in values["problems"]]
    return "\n".join(problems if problems and not values["rows"] else [table(rows), *problems])


def models(values: Mapping[str, Any]) -> str:
    """A line for each model on this machine."""
    if not values["models"]:
        return "There is no model on this machine yet."
    return table((entry["name"], "  ".join(filter(None, (
        f"{words.size(entry['bytes']):>8}", entry["origin"], entry["state"], entry["reason"], str(entry["path"])))))
        for entry in values["models"])


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns, the first as wide as it needs to be."""
    held = list(rows)
    width = max((len(name) for name, _ in held), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in held)


def _readable(name: str, value: Any) -> tuple[str, str]:
    title = name.replace("_", " ")
    if name.endswith("bytes") or name == "bytes_on_disk":
        return title.removesuffix(" bytes"), words.size(value)
    if isinstance(value, bool):
        return title, "yes" if value else "no"
    if isinstance(value, int):
        return title, f"{value:,}"
    if isinstance(value, float):
        return title, f"{value:.6g}"
    if isinstance(value, list | tuple):
        return title, ", ".join(str(item) for item in value)
    return title, str(value)
