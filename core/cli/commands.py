"""The sub-commands: each is a generator of events that ends with a Result, like the jobs it runs."""

import argparse
import dataclasses
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from psutil import virtual_memory

from core import estimate as estimates
from core import files
from core.adapter_folder import is_adapter_folder
from core.cli.answers import answer_source, converse
from core.cli.cards import keep_card, kept_card
from core.cli.described import describe_adapter, describe_run
from core.cli.going_on import going_on
from core.cluster import Machines, write_cluster_files
from core.config import (
    STARTER,
    DataConfig,
    ModelConfig,
    RunConfig,
    absolute_paths,
    dump_config,
    load_config,
    with_overrides,
)
from core.control import Control
from core.engine.job_table import run_job
from core.errors import CoreError
from core.events import (
    AdapterInspected,
    DataScanned,
    Event,
    MemoryMeasured,
    ModelInspected,
    ModelsListed,
    Result,
    Warned,
)
from core.jobs import (
    DownloadModel,
    Export,
    ImportGguf,
    InspectAdapter,
    InspectModel,
    ListModels,
    MixAdapters,
    PrepareStarter,
    ProbeMemory,
    Resume,
    ScanData,
    Train,
)
from core.launch import place
from core.models.library import resolve
from core.models.starter import starter_ready
from core.paths import SAMPLE_RUN_FILE
from core.records import ModelCard
from core.run_problems import advice, problems
from core.runs.folder import RunFolder

_LOOK_SECONDS = 0.2
Command = Callable[[argparse.Namespace, Control], Iterator[Event]]


def init(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Write a run file: the sample's own, or the defaults with the person's data; it may go on from an adapter."""
    path: Path = options.run_file
    if path.exists() and not options.force:
        raise CoreError(f"{path} exists already.", "Choose another name, or add --force to replace it.")
    if options.data is None:
        config = load_config(SAMPLE_RUN_FILE)
    elif options.data.is_file():
        config = RunConfig(data=DataConfig(train=(str(options.data.resolve()),)))
    else:
        raise CoreError(f"The data file {options.data} does not exist.", "Check the path.")
    if options.start is not None:
        if options.model is not None:
            yield from prepare_model(options.model, control)
        config = yield from going_on(config, options.start, _model_name(options.model or ""), control)
    else:
        config = config.model_copy(update={"model": ModelConfig(path=_model_name(options.model or STARTER))})
    files.write_text(path, dump_config(config))
    yield Result({"path": str(path), "model": config.model.path, "data": list(config.data.train)})


def train(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Train as the run file and its overrides say."""
    config = read_run_file(options)
    yield from prepare_model(config.model.path, control)
    yield from run_job(Train(config, options.run_dir), control)


def resume(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Go on with a run."""
    yield from prepare_model(RunFolder(options.run_dir).config().model.path, control)
    yield from run_job(Resume(options.run_dir), control)


def cluster(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Write what other machines need to train a run file."""
    machines = Machines(options.nodes, options.gpus, options.gpu)
    written = write_cluster_files(read_run_file(options), options.run_file.stem, machines, options.out)
    yield Result({"files": [str(path) for path in written]})


def export(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Write the adapter or the merged model, and the receipt."""
    yield from run_job(Export(options.run_dir, options.to, options.out, options.checkpoint, options.dtype,
                              options.shard_size, not options.no_receipt, options.form, options.base,
                              options.merge_into), control)


def mix(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Write a mix of adapters as a new adapter."""
    yield from run_job(MixAdapters(tuple(options.adapters), options.out, options.how, options.rank, options.dtype),
                       control)


def chat(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Answer one prompt, or hold a conversation."""
    if options.prompt is None and options.json:
        raise CoreError("With --json a question is needed.", "Add --prompt TEXT.")
    source = answer_source(options)
    yield from prepare_model(source.model, control)
    yield from converse(source, options, control)


def inspect(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Tell what a model, a run folder or an adapter is."""
    path = Path(options.path)
    if (path / "run.toml").is_file():
        yield Result(describe_run(RunFolder(path)))
    elif is_adapter_folder(path):
        for event in _without_result(run_job(InspectAdapter(path, options.base), control)):
            if isinstance(event, AdapterInspected):
                yield Result(describe_adapter(event.card))
            else:
                yield event
    else:
        card = yield from model_card(options.path, control)
        values = {item.name: getattr(card, item.name) for item in dataclasses.fields(card) if item.name != "modules"}
        yield Result({"kind": "model", **values})


def estimate(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Count parameters and memory, and name every problem of the run; with --probe a real step is measured."""
    config = read_run_file(options)
    if _is_shape_only(Path(config.model.path)):
        from core.models.inspect import read_shape_card  # noqa: PLC0415 - needs torch

        card = read_shape_card(Path(config.model.path))
    else:
        card = yield from model_card(config.model.path, control)
    devices = _devices()
    there = estimates.on_device(config, list(devices))
    memory = devices.get(there.training.device, virtual_memory().total)
    scan = yield from _scanned(config, control)
    gpus = 1 if options.probe else estimates.spread_here(config, card, devices)  # one process holds the whole base
    found = estimates.estimate(estimates.with_checkpointing(there, card, memory, scan, gpus), card, scan, gpus)
    probed = {}
    if options.probe:
        peak = yield from _measured_peak(config, control)
        probed = {"estimated_bytes": found.memory_bytes, "measured_bytes": peak}
        found = estimates.measured(found, peak - found.memory_bytes)
    yield Result({
        "trainable_parameters": found.trainable_parameters,
        "total_parameters": found.total_parameters,
        "adapter_bytes": found.adapter_bytes,
        "checkpoint_bytes": found.checkpoint_bytes,
        "memory_bytes": found.memory_bytes,
        "memory": found.memory,
        **probed,
        "targets": len(found.targets),
        "assumptions": list(found.assumptions),
        "problems": [dataclasses.asdict(problem) for problem in problems(config, card)],
        "advice": [dataclasses.asdict(item) for item in advice(config, card)],
    })


def _scanned(config: RunConfig, control: Control) -> Generator[Event, None, DataScanned | None]:
    """The lengths of the rows, or None where there are no files or no rows to read."""
    if not config.data.train or not all(Path(file).is_file() for file in config.data.train):
        return None
    found = None
    try:
        for event in _without_result(run_job(ScanData(config), control)):
            if isinstance(event, DataScanned):
                found = event
            else:
                yield event
    except CoreError as error:
        yield Warned(f"The rows could not be read: {error.message}", "Every length up to the maximum is reckoned with.")
    return found


def _measured_peak(config: RunConfig, control: Control) -> Generator[Event, None, int]:
    """Bytes at the peak of a step on the longest rows."""
    peak = 0
    for event in _without_result(run_job(ProbeMemory(config), control)):
        if isinstance(event, MemoryMeasured):
            peak = event.bytes
        else:
            yield event
    return peak


def _devices() -> dict[str, int]:
    """Bytes of memory of the devices that count for an estimate, the best first.

    torch knows them but takes seconds to import: it is asked only where a GPU's driver has left its tool.
    """
    if not any(shutil.which(tool) for tool in ("nvidia-smi", "rocm-smi", "amd-smi")):
        return {"cpu": virtual_memory().total}
    from core.models.device import device_memory  # noqa: PLC0415 - needs torch

    return device_memory()


def _is_shape_only(path: Path) -> bool:
    """A folder with a config.json and no weights: parameters and memory can be counted all the same."""
    return (path / "config.json").is_file() and not any(path.glob("*.safetensors*"))


def check_data(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Measure a dataset with the model's tokenizer."""
    base = RunConfig(model=ModelConfig(path=_model_name(options.model)),
                     data=DataConfig(train=(str(options.file.resolve()),)))
    config = with_overrides(base, options.overrides)
    yield from prepare_model(config.model.path, control)
    for event in _without_result(run_job(ScanData(config), control)):
        yield event
        if isinstance(event, DataScanned):
            yield Result({**dataclasses.asdict(event), "passed": not event.problems})


def models(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """List the models on this machine."""
    for event in run_job(ListModels(), control):
        if isinstance(event, ModelsListed):
            yield Result({"models": [dataclasses.asdict(entry) for entry in event.entries]})


def import_model(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Put a GGUF file into the model library."""
    yield from run_job(ImportGguf(options.file), control)


def download(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """Fetch a model from the hub into the model library."""
    yield from run_job(DownloadModel(options.repo_id, options.revision), control)


def demo(options: argparse.Namespace, control: Control) -> Iterator[Event]:
    """The sample task, measured before and after."""
    from core.demo import demo as run_demo  # noqa: PLC0415 - it needs torch, which the other commands do without

    yield from run_demo(control, options.run_dir, overrides=options.overrides, heldout_limit=options.rows)


def read_run_file(options: argparse.Namespace) -> RunConfig:
    """The run file with its overrides; paths in an override are taken from the present folder."""
    config = load_config(options.run_file)
    if not options.overrides:
        return config
    return absolute_paths(with_overrides(config, options.overrides), Path.cwd())


def prepare_model(model: str, control: Control) -> Iterator[Event]:
    """Make the starter ready if it is the chosen model and was not used before."""
    if place().local_rank > 0:  # of several on one machine, the first one makes it
        while model == STARTER and not starter_ready():
            control.check()
            time.sleep(_LOOK_SECONDS)
    elif model == STARTER and not starter_ready():
        yield from _without_result(run_job(PrepareStarter(), control))


def model_card(model: str, control: Control) -> Generator[Event, None, ModelCard]:
    """What is known of a model without loading its weights."""
    yield from prepare_model(model, control)
    folder = resolve(model)
    kept = kept_card(folder)
    if kept is not None:
        return kept
    for event in run_job(InspectModel(model), control):
        if isinstance(event, ModelInspected):
            keep_card(folder, event.card)
            return event.card
        yield event
    raise CoreError(f"Nothing could be found out about the model {model}.")


def _model_name(model: str) -> str:
    """`model` as a run file holds it: a name, the absolute path of a folder, or "". A wrong one is refused."""
    if model in ("", STARTER):
        return model
    folder = resolve(model)
    return str(folder.resolve()) if Path(model).exists() else model


def _without_result(stream: Iterator[Event]) -> Iterator[Event]:
    return (event for event in stream if not isinstance(event, Result))
