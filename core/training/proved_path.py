"""The computing path of a run; what was proved once for the same model and settings is not proved again.

The proof is three short passes, about a second on two cores, in which the person waits for the first step. Only that
the fast way is right is kept; a model that needs the plain one is asked each time.
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
_LIBRARIES = ("torch", "transformers")


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
        return fast_path(device, shares=known[key])
    path = choose_path(model, rows, config.training.packing, device, share)
    if path.packed and path.summed_loss is chunked_loss and len(probe_rows(rows)[0]) >= _LEAST_TOKENS:
        _keep({**known, key: path.shares})
    return path


def _key(config: RunConfig, device: torch.device, share: bool, fingerprint: str) -> str:
    """Of all that the proof depends on."""
    training = config.training
    parts = [fingerprint, config.model_dump(mode="json", include={"adapter", "prefix", "bottleneck"}),
             training.dtype, training.activation_checkpointing, training.packing, share, device.type,
             device_name(device), code_digest(("",), _LIBRARIES)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read() -> dict[str, bool]:
    """Whether rows may share their beginning, by key; empty where nothing is kept or the file is damaged."""
    path = cache_root() / _FILE
    if not path.is_file():
        return {}
    try:
        return {str(key): bool(value) for key, value in read_object(path, _MAX_BYTES).items()}
    except (CoreError, OSError, ValueError) as error:
        _log.info("%s is made anew: %r", path, error)
        return {}


def _keep(known: dict[str, bool]) -> None:
    newest = dict(list(known.items())[-_MOST_KEPT:])
    try:
        files.write_text(cache_root() / _FILE, json.dumps(newest))
    except OSError as error:
        _log.info("what was proved is not kept: %r", error)  # it is proved again next time
