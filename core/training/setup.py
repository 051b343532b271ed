"""Everything before the first step: model, adapter and rows."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.base_memory import weight_bytes
from core.config import FullConfig, PatternedConfig, RunConfig
from core.control import Control
from core.data.batching import Batch
from core.data.prepare import PreparedData, prepare_rows
from core.data.row_store import digest_of_all, row_lengths
from core.data.scan import length_counts
from core.data.template import EncodedRow
from core.errors import ConfigError, ModelError
from core.estimate import with_checkpointing
from core.events import DataScanned, Event, Note, Progress
from core.lora.adaptation import Adaptation
from core.lora.beside import add_tokens
from core.lora.full import METHOD as FULL
from core.lora.full import METHOD_KEY
from core.lora.method import AdapterModule, Material
from core.models.device import DTYPES, available_devices, free_memory, resolve_dtype, use_physical_cores
from core.models.inspect import read_card
from core.models.kept_tokenizer import kept_tokenizer
from core.models.library import resolve
from core.models.load import load_model, load_tokenizer
from core.models.quantise import ORIGIN_KEY, Quantisation, quantisation_of
from core.records import ModelCard
from core.run_problems import Problem, length_problems, problems
from core.training.computing_path import ComputingPath, choose_path
from core.training.frozen_linear import quicken_linears
from core.training.fused_elementwise import fuse_elementwise
from core.training.loss import SummedLoss
from core.training.meanwhile import meanwhile
from core.training.parallel import Ranks
from core.training.proved_path import proved_path
from core.training.recompute import recompute_layers
from core.training.shard import shard_base, should_shard

_RECOMPUTED = "Layers are computed a second time for the backward pass, which needs less memory."
_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Setup:
    """A run that is ready to train. `config` has every `auto` resolved that a resumed run could resolve otherwise."""

    config: RunConfig
    model: PreTrainedModel
    adaptation: Adaptation
    model_path: Path
    device: torch.device
    train: Sequence[EncodedRow]
    validation: Sequence[EncodedRow]
    summed_loss: SummedLoss
    batches: Callable[[Sequence[EncodedRow]], list[Batch]]
    shares_prefix: bool  # what rows begin with in common is computed once
    origin: dict[str, Any]
    ranks: Ranks

    @property
    def added_tensors(self) -> list[torch.Tensor]:
        """The trained numbers, and what their modules hold besides, such as the start that is taken off the update."""
        held = [buffer for module in self.model.modules() if isinstance(module, AdapterModule)
                for buffer in module.buffers(recurse=False)]
        return [*self.adaptation.parameters(self.model).values(), *held]

    @property
    def trainable_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.adaptation.parameters(self.model).values())

    @property
    def adapter_bytes(self) -> int:
        """Size of the adapter in fp32."""
        return 4 * self.trainable_parameters


@dataclass(frozen=True)
class _Base:
    """The frozen model that a run will load: where from, where to, and how it is held there."""

    path: Path
    card: ModelCard
    device: torch.device
    dtype: str
    quantisation: Quantisation | None
    spread: bool  # over several GPUs
    free: int  # bytes on the device before it comes


def prepare(config: RunConfig, control: Control, ranks: Ranks | None = None, *,
            resumed: bool = False) -> Generator[Event, None, Setup]:
    """Load the model, put the adapter on, prepare the rows, choose the computing path.

    Args:
        config: what the run file says.
        control: tells of a stop.
        ranks: the processes of the run; None is this one alone.
        resumed: the trained numbers are in a checkpoint.

    Raises:
        CoreError: anything that the person can mend: model, data, targets, device.
    """
    ranks = ranks or Ranks()
    yield Progress("Reading the model", 0, 0)
    base = _choose_base(config, ranks, resumed)
    wanted = config.adapter.new_tokens if isinstance(config.adapter, PatternedConfig) else ()
    tokenizer = load_tokenizer(base.path) if wanted else kept_tokenizer(base.path)
    added = add_tokens(tokenizer, wanted)
    rows, model = yield from meanwhile(_rows(config, base.card, tokenizer, control), lambda: _loaded(base),
                                       Progress("Loading the model", 0, 0))
    control.check()
    fused = fuse_elementwise(model)  # while it is a bare base
    asked = config.training.activation_checkpointing
    config = _with_checkpointing(_with_training(config, dtype=base.dtype), base, rows, ranks)
    adaptation = Adaptation(config)
    adaptation.install(model, Material(rows.train, config.training.seed, tokenizer, added, control.check))
    _check_vocabulary(model, rows.largest_id)
    config = _recomputed(config, model, asked == "on")
    if base.spread:
        shard_base(model, base.device, ranks)
    else:
        quicken_linears(model)
    computing = _computing_path(model, rows.train, config, base, ranks)
    recomputed = config.training.activation_checkpointing == "on"
    yield from map(Note, filter(None, (fused.words, computing.reason, _RECOMPUTED if recomputed else "")))
    resolved = _with_training(config, device=_device_to_keep(config, ranks, base.device),
                              packing="on" if computing.packed else "off")
    origin = _origin(resolved, base, rows)
    for what, digest in (("base model", base.card.fingerprint), ("training rows", origin["data_digest"]),
                         ("settings", _digest_of_settings(resolved))):
        ranks.require_same(what, digest)
    return Setup(resolved, model, adaptation, base.path, base.device, rows.train, rows.validation,
                 computing.summed_loss, computing.batches, computing.shares, origin, ranks)


def _choose_base(config: RunConfig, ranks: Ranks, resumed: bool) -> _Base:
    """What will be loaded, and where to. Raises CoreError where the run can not be."""
    path = resolve(config.model.path)
    card = read_card(path)
    device = ranks.device(config.training.device)
    _refuse(problems(config, card, devices=available_devices(), resumed=resumed))
    if device.type == "cpu":
        use_physical_cores()  # a number of threads belongs to the thread that sets it
    dtype = _agreed_dtype(config, ranks, device)
    spread = should_shard(config, ranks, device, weight_bytes(card, config.adapter, dtype))
    return _Base(path, card, device, dtype, quantisation_of(config.adapter, DTYPES[dtype]), spread,
                 free_memory(device))


def _rows(config: RunConfig, card: ModelCard, tokenizer: PreTrainedTokenizerBase,
          control: Control) -> Generator[Event, None, PreparedData]:
    """The rows, or why the model can not take rows of their length."""
    rows = yield from prepare_rows(config.data, tokenizer, config.training.seed, control)
    _refuse(length_problems(config, card, _longest(rows)))
    return rows


def _loaded(base: _Base) -> PreTrainedModel:
    """The base, in a thread that has not chosen its GPU yet."""
    with torch.cuda.device(base.device) if base.device.type == "cuda" else contextlib.nullcontext():
        to = torch.device("cpu") if base.spread else base.device
        return load_model(base.path, to, DTYPES[base.dtype], base.quantisation)


def _recomputed(config: RunConfig, model: PreTrainedModel, asked: bool) -> RunConfig:
    """Layers are computed again in the backward pass where the config says so; without it where that can not be.

    Raises:
        ConfigError: it was `asked` for by the person.
    """
    if config.training.activation_checkpointing != "on" or recompute_layers(model):
        return config
    if asked:
        raise ConfigError("The layers of this model are not known, so they can not be computed a second time.",
                          "Set training.activation_checkpointing to off.")
    return _with_training(config, activation_checkpointing="off")  # it is tried without


def _computing_path(model: PreTrainedModel, rows: Sequence[EncodedRow], config: RunConfig, base: _Base,
                    ranks: Ranks) -> ComputingPath:
    share = _may_share(config, base.spread)
    if not ranks.several:
        return proved_path(model, rows, config, base.device, share, base.card.fingerprint)
    with ranks.computing():  # what is kept on their machines may differ, and they have to pass together
        return choose_path(model, rows, config.training.packing, base.device, share)


def _may_share(config: RunConfig, spread: bool) -> bool:
    """Whether rows may share what they begin with.

    With dropout every row draws its own; with sharded weights all ranks must compute equally many passes.
    """
    dropout = getattr(config.adapter, "dropout", 0.0)
    return config.training.shared_prefix == "auto" and not dropout and not spread


def _with_checkpointing(config: RunConfig, base: _Base, rows: PreparedData, ranks: Ranks) -> RunConfig:
    """Activation checkpointing on or off, the same for all processes, by what was free before the base came."""
    scan = _scanned(rows)
    here = _with_training(config, device=str(base.device))
    gpus = ranks.place.world if base.spread else 1
    chosen = ranks.agreed("activation checkpointing", lambda: with_checkpointing(
        here, base.card, base.free, scan, gpus).training.activation_checkpointing)
    return _with_training(config, activation_checkpointing=chosen)


def _scanned(rows: PreparedData) -> DataScanned:
    """The lengths of the rows, as a scan of the data tells them."""
    lengths = np.concatenate([row_lengths(part) for part in (rows.train, rows.validation)])
    longest = _longest(rows)
    return DataScanned((), "", len(lengths), int(lengths.sum()), 0, 0, 0, longest, length_counts(lengths, longest))


def _with_training(config: RunConfig, **values: Any) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=values)})


def _longest(rows: PreparedData) -> int:
    """Tokens of the longest row, held-out ones included; 0 where there is none."""
    return int(max(row_lengths(part).max(initial=0) for part in (rows.train, rows.validation)))


def _agreed_dtype(config: RunConfig, ranks: Ranks, device: torch.device) -> str:
    """The number type of the base, the same for all processes."""
    # full fine-tuning: small steps would be lost in 16-bit weights
    whole = isinstance(config.adapter, FullConfig) and config.training.dtype == "auto"
    wanted = "fp32" if whole else config.training.dtype
    return ranks.agreed("number type", lambda: _DTYPE_NAMES[resolve_dtype(wanted, device)])


def _origin(config: RunConfig, base: _Base, rows: PreparedData) -> dict[str, Any]:
    """What the adapter tells of where it comes from."""
    card = base.card
    origin: dict[str, Any] = {
        "base_fingerprint": card.fingerprint, "base_name": card.name, "base_path": str(base.path),
        "base_origin": card.origin, "base_parameters": card.parameters,
        "data_digest": digest_of_all(rows.train, rows.validation)}
    if base.quantisation is not None:
        origin[ORIGIN_KEY] = base.quantisation.to_plain()
    if isinstance(config.adapter, FullConfig):
        origin[METHOD_KEY] = FULL
    return origin


def _device_to_keep(config: RunConfig, ranks: Ranks, device: torch.device) -> str:
    """As run.toml holds it: the one device, or all of them."""
    several = config.training.device == "all" or (ranks.several and device.type == "cuda")
    return "all" if several else str(device)


def _digest_of_settings(config: RunConfig) -> str:
    """Of what must be alike on all machines; a file may lie elsewhere on another."""
    return hashlib.sha256((config.adapter.model_dump_json() + config.training.model_dump_json()).encode()).hexdigest()


def _check_vocabulary(model: PreTrainedModel, largest: int) -> None:
    """An id above the embedding would fail deep inside the first step, on a GPU even without a reason."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    known = weight.shape[0]
    if largest >= known:
        raise ModelError(f"The tokenizer of this model makes token {largest}, but its embedding has only {known} rows.",
                         "The tokenizer files belong to another model.")


def _refuse(found: Sequence[Problem]) -> None:
    """Raise what the form would have written at its fields: a run file need not come from the form."""
    if found:
        first = found[0]
        raise ConfigError(f"{first.field}: {first.message}", first.hint,
                          "\n".join(f"{each.field}: {each.message} {each.hint}".rstrip() for each in found))


def started_now() -> tuple[float, int]:
    """Wall clock in seconds since the epoch, and this process's id."""
    return time.time(), os.getpid()
