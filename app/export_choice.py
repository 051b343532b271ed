"""What the export wizard gathers: the choices, their sizes, their problems. No widgets here."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from app.shell import command_line
from core import files
from core.config import FullConfig, RunConfig
from core.jobs import Export
from core.paths import data_root
from core.records import ModelCard
from core.words import size

Target = Literal["adapter", "merged"]
ExportDtype = Literal["base", "fp32", "bf16", "fp16"]
ExportForm = Literal["peft", "compatible"]
MergeInto = Literal["original", "dequantised"]
_BYTES_OF = {"fp32": 4, "bf16": 2, "fp16": 2}
_SPARE_BYTES = 2**24
_WRITE_BYTES_PER_SECOND = 100e6
_PARAMETERS_PER_SECOND = 1.5e6  # of the receipt's comparison on two CPU cores, on the cautious side


@dataclass(frozen=True)
class ExportChoice:
    """All choices of the wizard. `checkpoint` "" is the final adapter, `shard_bytes` 0 the base's own files."""

    run_dir: Path
    checkpoint: str = ""
    to: Target = "adapter"
    dtype: ExportDtype = "base"
    shard_bytes: int = 0
    out: Path = Path()
    form: ExportForm = "peft"  # of an adapter
    base: str = ""  # of an adapter that was made elsewhere; `run_dir` is its folder then
    merge_into: MergeInto = "original"  # of a merged QLoRA run

    def job(self) -> Export:
        """The request to the engine."""
        return Export(self.run_dir, self.to, self.out, self.checkpoint, self.dtype,
                      self.shard_bytes if self.to == "merged" else 0, base=self.base,
                      form=self.form if self.to == "adapter" else "peft",
                      merge_into=self.merge_into if self.to == "merged" else "original")

    def command(self) -> str:
        """The same as a command line of this system."""
        words = ["lora-workbench", "export", str(self.run_dir), "--to", self.to, "--out", str(self.out)]
        if self.checkpoint:
            words += ["--checkpoint", self.checkpoint]
        if self.dtype != "base":
            words += ["--dtype", self.dtype]
        if self.to == "merged" and self.shard_bytes:
            words += ["--shard-size", str(self.shard_bytes)]
        if self.to == "adapter" and self.form != "peft":
            words += ["--form", self.form]
        if self.to == "merged" and self.merge_into != "original":
            words += ["--merge-into", self.merge_into]
        if self.base:
            words += ["--base", self.base]
        return command_line(words)

    def with_default_folder(self) -> "ExportChoice":
        """The same with a folder that does not exist yet, named after the run."""
        name = f"{self.run_dir.name}-{self.to}" + (f"-{self.checkpoint}" if self.checkpoint else "")
        return replace(self, out=files.free_path(data_root() / "exports" / name))


@dataclass(frozen=True)
class ExportFacts:
    """What is known of the run's adapter and of its base model (None until it was inspected). `stored` is the number
    type of the files that are exported; "" takes it from the config. `unmergeable` says why there is no merged model.
    `compatible_parameters` counts the numbers of the adapter's compatible form, 0 while not known.
    """

    config: RunConfig
    adapter_bytes: int  # as it lies in the run
    card: ModelCard | None = None
    stored: str = ""
    unmergeable: str = ""
    compatible_parameters: int = 0

    @property
    def is_whole(self) -> bool:
        """Full fine-tuning: there is a model and no adapter."""
        return isinstance(self.config.adapter, FullConfig)

    @property
    def stored_dtype(self) -> str:
        """The number type of the adapter's files, or of the fine-tuned model's."""
        return self.stored if self.stored in _BYTES_OF else self.config.adapter.save_dtype

    def natural_dtype(self, choice: ExportChoice) -> str:
        """What "base" stands for; "" while not known."""
        if choice.to == "adapter":  # the compatible form is computed anew
            return "fp32" if choice.form == "compatible" else self.stored_dtype
        return self.stored_dtype if self.is_whole else self.card.dtype if self.card is not None else ""

    def bytes_of(self, choice: ExportChoice) -> int:
        """How much the export takes, about; 0 while not known."""
        dtype = self.natural_dtype(choice) if choice.dtype == "base" else choice.dtype
        if choice.to == "adapter":
            if choice.form == "compatible" and self.compatible_parameters:  # padded to one rank
                return self.compatible_parameters * _BYTES_OF[dtype]
            return self.adapter_bytes * _BYTES_OF[dtype] // _BYTES_OF[self.stored_dtype]
        if self.card is None:
            return 0
        if choice.dtype == "base" and not self.is_whole:
            return self.card.bytes_on_disk
        return self.card.parameters * _BYTES_OF[dtype]

    def seconds_of(self, choice: ExportChoice) -> float:
        """How long writing and checking takes, about; 0 while not known."""
        if self.card is None:
            return 0.0
        return 5 + 2 * self.bytes_of(choice) / _WRITE_BYTES_PER_SECOND + self.card.parameters / _PARAMETERS_PER_SECOND


def folder_problem(text: str, needed: int) -> tuple[str, str]:
    """(what is wrong with the folder, what to do); ("", "") if it can be exported to.

    The same rules as in `core.export`, which checks again when it begins.
    """
    if not text.strip():
        return "Choose a folder.", ""
    out = Path(text.strip()).expanduser()
    if not out.is_absolute():
        return "Write the whole path of the folder.", ""
    try:
        return _state_problem(out, needed)
    except OSError as error:
        return f"This folder can not be used: {error.strerror or error}.", "Choose another folder."


def _state_problem(out: Path, needed: int) -> tuple[str, str]:
    if out.is_dir():
        if any(out.iterdir()):
            return "This folder is not empty.", "Choose a new one, so that nothing is overwritten."
    elif out.exists() or out.is_symlink():
        return "This is a file.", "Choose a new folder."
    parent = next((one for one in out.parents if one.exists()), out)
    if not parent.is_dir():
        return f"{parent.name} is a file, not a folder.", "Choose another folder."
    if not os.access(parent, os.W_OK):
        return f"Nothing can be written into {parent.name or parent}.", "Choose another folder."
    free = files.free_bytes(out)
    if needed and free < needed + _SPARE_BYTES:
        return f"The export takes {size(needed)}, but only {size(free)} are free here.", "Choose another disk."
    return "", ""
