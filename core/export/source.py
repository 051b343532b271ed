"""What is exported, found and checked: a run's adapter, its fine-tuned model, or an adapter made elsewhere."""

from dataclasses import dataclass, replace
from pathlib import Path

from core.adapter_folder import is_adapter_folder, named_base
from core.config import FullConfig, RunConfig
from core.errors import AdapterError, ModelError
from core.export.bases import require_fit, trained_base
from core.jobs import Export
from core.lora.adapter_file import AdapterFile, read_adapter, read_origin
from core.lora.peft_keys import Contents
from core.models.inspect import fingerprint, read_card
from core.models.library import display_name, hub_id, resolve
from core.models.quantise import Quantisation, quantisation_in
from core.models.safety import check_files, check_model_folder
from core.runs.folder import RunFolder
from core.training.checkpoint import damage


@dataclass(frozen=True)
class Source:
    """What is exported: `name` of the run or of the adapter's folder, `config` None for one made elsewhere."""

    name: str
    config: RunConfig | None
    adapter: AdapterFile
    base: Path
    base_name: str
    base_origin: str
    what: str = "base + adapter"  # what a merged model must equal, in words
    is_whole: bool = False  # full fine-tuning: `base` is the fine-tuned model itself
    trained_from: Path | None = None  # and this the base's own folder

    @property
    def quantisation(self) -> Quantisation | None:
        """How the base was held in training; None where it was not quantised."""
        return quantisation_in(self.adapter.origin)


def find_source(job: Export) -> Source:
    """The adapter that is meant and the base it was trained on, checked.

    Raises:
        CoreError: something is missing or damaged, or the base is not the one of the training.
    """
    run = RunFolder(job.run_dir.expanduser().absolute())
    if not run.config_path.exists() and is_adapter_folder(run.path):
        source = _foreign_source(run.path, job.base)
    else:
        source = _run_source(job, run)
    if job.merge_into == "dequantised" and (job.to != "merged" or source.quantisation is None):
        raise AdapterError("Only a merged model of a QLoRA run can be made of dequantised weights.",
                           "Leave this choice at the original weights.")
    return source


def _run_source(job: Export, run: RunFolder) -> Source:
    config = run.config()
    base = resolve(config.model.path)
    if isinstance(config.adapter, FullConfig):
        return _whole_source(job, run, config, base)
    adapter = read_adapter(_adapter_folder(run, job.checkpoint))
    return _source(run.path.name, config, adapter, base)


def _whole_source(job: Export, run: RunFolder, config: RunConfig, base: Path) -> Source:
    """The model that full fine-tuning left, which takes the place of base and adapter."""
    if job.to == "adapter":
        raise AdapterError(f"The run {run.path.name} trained the whole model, so it has no adapter.",
                           "Export the merged model, which is the fine-tuned one.")
    folder = _learned_folder(run, job.checkpoint, run.model, "model")
    adapter = AdapterFile(folder, Contents(), {}, read_origin(folder))
    source = _source(run.path.name, config, adapter, base)
    return replace(source, base=base if job.checkpoint else folder, what="the fine-tuned model", is_whole=True,
                   trained_from=base)


def _foreign_source(folder: Path, named: str) -> Source:
    """An adapter folder of another program, with the base that the person or its own files name."""
    adapter = read_adapter(folder)
    bases = [named] if named else [str(adapter.origin.get("base_path") or ""), named_base(folder)]
    for model in filter(None, bases):
        try:
            base = resolve(model)
        except ModelError:
            if named:
                raise
            continue
        require_fit(adapter, read_card(base))
        return _source(folder.name, None, adapter, base)
    base = trained_base(adapter)  # an export of ours says only what it is called
    if base is not None:
        return _source(folder.name, None, adapter, base)
    raise ModelError(f"It is not known which base model the adapter in {folder} belongs to.",
                     "Name its base model.")


def _source(name: str, config: RunConfig | None, adapter: AdapterFile, base: Path) -> Source:
    check_model_folder(base)
    trained_on = adapter.origin.get("base_fingerprint")
    if trained_on and trained_on != fingerprint(base, check_files(base)):
        raise ModelError(f"The base model in {base} is not the one that this adapter was trained on.",
                         "Its files have changed since; bring back the old ones, or train again.")
    base_name = hub_id(base) or str(adapter.origin.get("base_name") or display_name(base))
    base_origin = str(adapter.origin.get("base_origin") or "")
    for place in filter(None, (str(base), str(adapter.origin.get("base_path") or ""))):
        base_origin = base_origin.replace(place, base_name)  # the export's readers have another disk
    return Source(name, config, adapter, base, base_name, base_origin)


def _adapter_folder(run: RunFolder, checkpoint: str) -> Path:
    return _learned_folder(run, checkpoint, run.adapter, "adapter")


def _learned_folder(run: RunFolder, checkpoint: str, final: Path, kind: str) -> Path:
    """A checkpoint, or what the run left: its adapter or its model."""
    if not checkpoint:
        if not final.is_dir():
            raise AdapterError(f"The run {run.path.name} has no final {kind} yet.",
                               "Choose one of its checkpoints, or let the training end.")
        return final
    known = {path.name: path for path in run.checkpoint_folders()}
    if checkpoint not in known:
        raise AdapterError(f"The run {run.path.name} has no checkpoint {checkpoint!r}.",
                           f"It has: {', '.join(known) or 'none'}.")
    reason = damage(known[checkpoint])
    if reason:
        raise AdapterError(f"The checkpoint {checkpoint} is damaged: {reason}.", "Choose another checkpoint.")
    return known[checkpoint]
