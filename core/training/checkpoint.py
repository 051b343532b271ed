"""Checkpoints: everything that a run needs to go on as if nothing had happened.

A checkpoint folder holds the adapter in fp32 (PEFT layout), the optimizer's moments and the random
generators as safetensors, the position in state.json, and manifest.json with size and SHA-256 of
each file. Nothing is pickled.
"""

import errno
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from core import files
from core.errors import AdapterError, CoreError, DataError, ModelError
from core.lora.adapter_file import read_origin
from core.lora.tensor_file import write_tensors
from core.runs.folder import RunFolder
from core.training.optim import optimizer_tensors, restore_optimizer
from core.training.setup import Setup

MANIFEST_NAME = "manifest.json"
OPTIMIZER_NAME = "optimizer.safetensors"
_STATE_NAME = "state.json"
_VALUE = "value"
_STATE_PREFIX = "method."


@dataclass
class Position:
    """How far a run is: steps done, what they cost, and the best validation loss so far."""

    step: int = 0
    tokens: int = 0  # without padding, over all steps
    seconds: float = 0.0  # of the steps alone
    loss: float | None = None  # of the last step
    best_step: int = 0
    best_loss: float | None = None
    first_loss: float | None = None  # before the first step: of the base, or of the adapter that the run started from


def save_checkpoint(run: RunFolder, setup: Setup, optimizer: torch.optim.Optimizer, position: Position) -> Path:
    """Write the checkpoint of `position.step`, whole or not at all.

    Raises:
        CoreError: the disk is full; says how much is needed.
    """
    folder = run.checkpoint(position.step)
    needed = 4 * setup.adapter_bytes  # the adapter's own files, and the trained numbers with their two moments
    try:
        with files.replaced_folder(folder) as temporary:
            base = str(setup.model_path)
            setup.adaptation.write(temporary, setup.model, torch.float32, base, setup.origin)
            write_tensors(temporary / OPTIMIZER_NAME, _trained_tensors(setup, optimizer) | _random_states())
            files.write_text(temporary / _STATE_NAME, json.dumps(asdict(position)))
            _write_manifest(temporary)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CoreError(
            f"The disk is full: the checkpoint of step {position.step} needs about {needed:,} bytes, "
            f"{files.free_bytes(folder):,} are free.",
            "Free some space, then continue the run; the checkpoints before this one are kept.") from error
    return folder


def _trained_tensors(setup: Setup, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The trained numbers themselves, which some methods write in another form, and the optimizer's moments."""
    tensors = {f"{_STATE_PREFIX}{name}": tensor.detach().cpu().contiguous()
               for name, tensor in setup.adaptation.state().items()}
    for name, parameter in setup.adaptation.parameters(setup.model).items():
        tensors[f"{name}.{_VALUE}"] = parameter.detach().cpu().contiguous()
        tensors |= {f"{name}.{part}": tensor for part, tensor in optimizer_tensors(optimizer, parameter).items()}
    return tensors


def _random_states() -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"random.cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        states["random.mps"] = torch.mps.get_rng_state()
    return states


def _write_manifest(folder: Path) -> None:
    entries = {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
               for path in sorted(folder.rglob("*")) if path.is_file()}
    files.write_text(folder / MANIFEST_NAME, json.dumps(entries, indent=2) + "\n")


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint folder, naming the file; "" where it is whole."""
    try:
        entries = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        for name, entry in entries.items():
            path = (folder / name).resolve()
            whole = path.is_relative_to(folder.resolve()) and path.stat().st_size == entry["bytes"]
            if not whole or files.sha256(path) != entry["sha256"]:
                return f"{path} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder / MANIFEST_NAME} can not be used ({type(error).__name__})"
    return ""


def newest_valid(run: RunFolder) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with the newer ones.

    Raises:
        CoreError: there are checkpoints, and all of them are damaged.
    """
    problems = []
    for folder in reversed(run.checkpoint_folders()):
        problem = damage(folder)
        if not problem:
            return folder, problems
        problems.append(problem)
    if problems:
        raise CoreError(f"No checkpoint of {run.path.name} is whole: {problems[0]}.",
                        "Nothing was deleted. Repeat the run from its settings.")
    return None, problems


def restore_checkpoint(folder: Path, setup: Setup, optimizer: torch.optim.Optimizer) -> Position:
    """Put adapter, optimizer and random generators back as they were; returns where the run was.

    Raises:
        ModelError: the base model's files are not those of the checkpoint.
        DataError: the training rows are others.
        AdapterError: the run file has other adapter settings than the checkpoint.
    """
    tensors = load_file(folder / OPTIMIZER_NAME)
    _require_same_run(folder, tensors, setup)
    parameters = setup.adaptation.parameters(setup.model)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"{name}.{_VALUE}"])
    setup.adaptation.load_state({key.removeprefix(_STATE_PREFIX): tensor for key, tensor in tensors.items()
                                 if key.startswith(_STATE_PREFIX)})
    held: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        if part != _VALUE:
            held.setdefault(name, {})[part] = tensor
    for name, parameter in parameters.items():
        restore_optimizer(optimizer, parameter, held.get(name, {}))
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda.0" in tensors:
        states = [tensors[key] for key in sorted(tensors) if key.startswith("random.cuda.")]
        if len(states) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states)
    if torch.backends.mps.is_available() and "random.mps" in tensors:
        torch.mps.set_rng_state(tensors["random.mps"])
    return Position(**json.loads((folder / _STATE_NAME).read_text(encoding="utf-8")))


def _require_same_run(folder: Path, tensors: dict[str, Tensor], setup: Setup) -> None:
    origin = read_origin(folder)
    if origin.get("base_fingerprint") != setup.origin["base_fingerprint"]:
        raise ModelError(f"The base model in {setup.model_path} is not the one that this run began with.",
                         "Its files have changed since; bring back the old ones, or start a new run.")
    if origin.get("data_digest") != setup.origin["data_digest"]:
        raise DataError("The training rows are not those that this run began with.",
                        "Bring back the old files and settings of the data, or start a new run.")
    saved = {name.removesuffix(f".{_VALUE}"): tensor.shape for name, tensor in tensors.items()
             if name.endswith(f".{_VALUE}")}
    wanted = {name: parameter.shape for name, parameter in setup.adaptation.parameters(setup.model).items()}
    if saved != wanted:
        raise AdapterError(f"The checkpoint {folder.name} was made with another method, rank or other target layers "
                           "than the run file says now.", "Bring back the old settings, or start a new run.")


def prune_checkpoints(run: RunFolder, keep: int, best_step: int) -> None:
    """Remove old checkpoints; the `keep` newest and the best stay. Called after a save has succeeded."""
    for folder in run.checkpoint_folders()[:-keep]:
        if folder != run.checkpoint(best_step):
            shutil.rmtree(folder)
