"""Which generator does which job. The engine and the command line both run jobs through this table."""

import gc
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator

from core import jobs
from core.control import Control
from core.engine.protocol import Ready
from core.errors import EngineError
from core.events import Event, ModelsListed, Result

# "module:function", imported when it is first asked for: torch takes seconds to import
GENERATORS: dict[type, str] = {
    jobs.Train: "core.training.loop:train",
    jobs.Resume: "core.training.loop:resume",
    jobs.ListModels: "core.engine.job_table:list_models",
    jobs.PrepareStarter: "core.engine.job_table:prepare_starter",
    jobs.InspectModel: "core.models.inspect:inspect_model",
    jobs.ImportGguf: "core.models.gguf_import:import_gguf",
    jobs.DownloadModel: "core.models.hub:download_model",
    jobs.ScanData: "core.data.scan:scan_dataset",
    jobs.PreviewRows: "core.data.preview:preview_rows",
    jobs.ProbeMemory: "core.training.fit_probe:probe_memory",
    jobs.Generate: "core.training.generate:generate",
    jobs.InspectAdapter: "core.export.inspect_adapter:inspect_adapter",
    jobs.MixAdapters: "core.export.mix:mix_adapters",
    jobs.Export: "core.export.export:export",
}


class JobRunner:
    """Runs any job as its generator of events, and keeps models warm between jobs.

    A generator with a third parameter `warm` is given a dictionary that lives as long as the
    runner; it keeps loaded models there. `Unload` empties it.
    """

    def __init__(self) -> None:
        self._warm: dict[str, object] = {}

    def __call__(self, job: jobs.Job, control: Control) -> Iterator[Event]:
        """The events of a job; raises what the job raises."""
        if isinstance(job, jobs.Unload):
            return self._unload()
        generator = find_generator(type(job))
        if "warm" in inspect.signature(generator).parameters:
            return generator(job, control, warm=self._warm)
        if isinstance(job, jobs.Train | jobs.Resume):
            return _then_free(generator(job, control))
        return generator(job, control)

    def warm_up(self, role: str) -> None:
        """Import what the jobs of this role ("train", "work") need, so that the first one starts at once.

        Before training, the speed of the number types is measured; it is kept on the disk.
        """
        if role == "train":
            importlib.import_module("core.training.loop")
            importlib.import_module("core.models.warm").import_families()
            device = importlib.import_module("core.models.device")
            device.resolve_dtype("auto", device.resolve_device("auto"))
        else:
            importlib.import_module("core.models.inspect")
            importlib.import_module("core.data.scan")
            importlib.import_module("core.data.preview")
            importlib.import_module("core.training.generate")
        gc.collect()
        gc.freeze()  # what is imported stays: a round of the collector need not look through all of it again

    def ready(self) -> Ready:
        """What this machine computes with; no GPUs together where torch can not join processes on them."""
        torch = importlib.import_module("torch")
        several = torch.distributed.is_available() and torch.distributed.is_nccl_available()
        device = importlib.import_module("core.models.device")
        return Ready(torch.cuda.device_count() if several else 0, device.accelerator_words(),
                     device.device_memory())

    def _unload(self) -> Iterator[Event]:
        self._warm.clear()
        _free_memory()
        yield Result({})


def _then_free(events: Iterator[Event]) -> Iterator[Event]:
    """The same events, then what they leave on a GPU is given back: other processes, such as the chat's, need it."""
    try:
        yield from events
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they hold the model
        raise
    finally:
        _free_memory()


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")  # nothing to free where it was never imported
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_job(job: jobs.Job, control: Control) -> Iterator[Event]:
    """The events of one job in this process; raises what the job raises."""
    return JobRunner()(job, control)


def list_models(job: jobs.ListModels, control: Control) -> Iterator[Event]:
    """The models on this machine -> ModelsListed."""
    from core.models import library  # noqa: PLC0415 -- as the table: only when it is asked for

    yield ModelsListed(tuple(library.list_models()))
    yield Result({})


def prepare_starter(job: jobs.PrepareStarter, control: Control) -> Iterator[Event]:
    """Make the starter model ready -> Result(path, name)."""
    from core.models import starter  # noqa: PLC0415

    yield from starter.ensure_starter(control)


def find_generator(kind: type) -> Callable[..., Iterator[Event]]:
    """The function that does this kind of job.

    Raises:
        EngineError: no such kind of job.
    """
    if kind not in GENERATORS:
        raise EngineError(f"The engine knows no job {kind.__name__}.")
    module, name = GENERATORS[kind].split(":")
    return getattr(importlib.import_module(module), name)
