"""The computing path of a run; what was proved once for the same model and settings is not proved again.

The proof is three short passes, during which the person waits for the first step. Only that
the fast way is right in all that was asked is kept; a model that needs the plain one is asked each time.
"""

import hashlib
import json
import logging
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from core import files
from core.code_digest import code_digest
from core.config import RunConfig
from core.data.template import EncodedRow
from core.errors import CoreError
from core.models.device import device_name
from core.models.json_file import read_object
from core.paths import cache_root
from core.training.computing_path import ComputingPath, choose_path, fast_path, probe_rows
from core.training.loss import chunked_loss

_log = logging.getLogger(__name__)
_FILE = "proved-paths.json"
_MAX_BYTES = 2**20
_MOST_KEPT = 1_000
_LEAST_TOKENS = 8  # shorter rows have no beginning to share, which says nothing about longer ones
_LIBRARIES = ("torch", "transformers", "bitsandbytes")


def proved_path(model: PreTrainedModel, rows: Sequence[EncodedRow], config: RunConfig, device: torch.device,
                share: bool, fingerprint: str) -> ComputingPath:
    """As `choose_path`, which is asked only where nothing is kept.

    Args:
        model: with everything that `config` adds.
        rows: those of the run.
        config: `dtype` and `activation_checkpointing` are no longer auto.
        device: where the model is.
        share: rows may share what they begin with.
        fingerprint: of the base.
    """
    key = _key(config, device, share, fingerprint)
    known = _read()
    if key in known:
        model.eval()
        return fast_path(device, shares=share)
    path = choose_path(model, rows, config.training.packing, device, share)
    fast = path.packed and path.summed_loss is chunked_loss and path.shares == share
    if fast and len(probe_rows(rows)[0]) >= _LEAST_TOKENS:
        _keep([*known, key])
    return path


def _key(config: RunConfig, device: torch.device, share: bool, fingerprint: str) -> str:
    """Of what the proof depends on: the base, what is put on it, how it is computed, by what code and on what."""
    training = config.training
    parts = [fingerprint, config.model_dump(mode="json", include={"adapter", "prefix", "bottleneck"}),
             training.dtype, training.activation_checkpointing, training.packing, share, device.type,
             device_name(device), code_digest(("",), _LIBRARIES)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read() -> list[str]:
    """The keys of what was proved, the oldest first; none where nothing is kept or the file is damaged."""
    path = cache_root() / _FILE
    if not path.is_file():
        return []
    try:
        keys = read_object(path, _MAX_BYTES)["proved"]
        return [key for key in keys if isinstance(key, str)]
    except (CoreError, OSError, LookupError, TypeError) as error:
        _log.info("%s is made anew: %r", path, error)
        return []


def _keep(known: list[str]) -> None:
    try:
        files.write_text(cache_root() / _FILE, json.dumps({"proved": known[-_MOST_KEPT:]}))
    except OSError as error:
        _log.info("what was proved is not kept: %r", error)  # it is proved again next time
