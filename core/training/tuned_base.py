"""How the base must be held for the adapters of a question, and the models that full fine-tuning left."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from core.adapter_folder import is_adapter_folder
from core.errors import AdapterError
from core.lora.adapter_file import read_origin
from core.lora.attach import load_adapter
from core.lora.full import is_full, load_values
from core.models.load import load_model
from core.models.quantise import Quantisation, quantisation_in
from core.training.checkpoint import OPTIMIZER_NAME


def quantisation_for(folders: Sequence[Path]) -> Quantisation | None:
    """How the base was held while these adapters were trained, so that what is tried is what was trained.

    The first adapter decides. Raises AdapterError for a workbench.json that can not be understood.
    """
    return quantisation_in(read_origin(folders[0])) if folders else None


def is_whole_model(folder: Path) -> bool:
    """True for what full fine-tuning left: its model, or one of its checkpoints."""
    return not is_adapter_folder(folder) and ((folder / "config.json").is_file() or is_full(read_origin(folder)))


def load_whole_model(folder: Path, base: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The fine-tuned model of `folder`; a checkpoint holds only what differs from `base`.

    Raises:
        CoreError: damaged, or of another base.
    """
    if (folder / "config.json").is_file():
        return load_model(folder, device, dtype)
    model = load_model(base, device, dtype)
    load_values(folder / OPTIMIZER_NAME, model)
    return model


def whole_among(folders: Sequence[Path]) -> Path | None:
    """The one fine-tuned model among what a question names; None where there are adapters alone.

    Raises:
        AdapterError: it stands beside adapters or another such model.
    """
    whole = [folder for folder in folders if is_whole_model(folder)]
    if whole and len(folders) > 1:
        raise AdapterError(f"{whole[0]} is a whole model, which can not be mixed with others.", "Choose it alone.")
    return whole[0] if whole else None


def load_tuned(folder: Path, base: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """`base` with the adapter of `folder`, held as in its training, or the model that full fine-tuning left there.

    Raises:
        CoreError: damaged, or of another base.
    """
    if is_whole_model(folder):
        return load_whole_model(folder, base, device, dtype)
    quantisation = quantisation_for([folder])
    model = load_model(base, device, dtype if quantisation is None else quantisation.computed_in, quantisation)
    load_adapter(folder, model)
    return model.eval()
