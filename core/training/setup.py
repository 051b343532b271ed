"""Everything before the first step: model, adapter, rows, and the way the loss is computed."""

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from core.base_memory import weight_bytes
from core.config import FullConfig, PatternedConfig, RunConfig
from core.control import Control
from core.data.batching import Batch, pack, pad
from core.data.prepare import prepare_rows
from core.data.row_store import row_lengths
from core.data.template import EncodedRow
from core.errors import ConfigError, CoreError, ModelError
from core.events import Event, Note, Progress
from core.lora.adaptation import Adaptation
from core.lora.beside import add_tokens
from core.lora.full import METHOD as FULL
from core.lora.full import METHOD_KEY
from core.lora.method import AdapterModule, Material
from core.models.inspect import read_card
from core.models.library import resolve
from core.models.load import load_model, load_tokenizer, resolve_dtype
from core.models.quantise import ORIGIN_KEY, quantisation_of
from core.run_problems import Problem, length_problems, problems
from core.training.loss import SummedLoss, chunked_loss, direct_loss
from core.training.parallel import Ranks
from core.training.segments import segmented_attention
from core.training.shard import shard_base, should_shard

_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_PROBE_ROWS = 2
_PROBE_TOKENS = 32


@dataclass(frozen=True)
class Setup:
    """A run that is ready to train. `config` has every `auto` resolved."""

    config: RunConfig
    model: PreTrainedModel
    adaptation: Adaptation
    model_path: Path
    device: torch.device
    train: Sequence[EncodedRow]
    validation: Sequence[EncodedRow]
    summed_loss: SummedLoss
    batches: Callable[[Sequence[EncodedRow]], list[Batch]]
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


def prepare(config: RunConfig, control: Control, ranks: Ranks | None = None) -> Generator[Event, None, Setup]:
    """Load the model, put the adapter on, prepare the rows, choose the computing path.

    Args:
        config: what the run file says.
        control: tells of a stop.
        ranks: the processes of the run; None is this one alone.

    Raises:
        CoreError: anything that the person can mend: model, data, targets, device.
    """
    ranks = ranks or Ranks()
    path = resolve(config.model.path)
    yield Progress("Reading the model", 0, 0)
    card = read_card(path)
    device = ranks.device(config.training.device)
    _refuse(problems(config, card))
    tokenizer = load_tokenizer(path)
    if isinstance(config.adapter, PatternedConfig):
        add_tokens(tokenizer, config.adapter.new_tokens)
    prepared = yield from prepare_rows(config.data, tokenizer, config.training.seed, control)
    lengths = [row_lengths(rows) for rows in (prepared.train, prepared.validation)]
    _refuse(length_problems(config, card, int(max(found.max(initial=0) for found in lengths))))
    # full fine-tuning: small steps would be lost in 16-bit weights
    whole = isinstance(config.adapter, FullConfig) and config.training.dtype == "auto"
    wanted = "fp32" if whole else config.training.dtype
    name = ranks.agreed("number type", lambda: _DTYPE_NAMES[resolve_dtype(wanted, device)])
    dtype = resolve_dtype(name, device)
    yield Progress("Loading the model", 0, 0)
    quantisation = quantisation_of(config.adapter, dtype)
    spread = should_shard(config, ranks, device, weight_bytes(card, config.adapter, name))
    model = load_model(path, torch.device("cpu") if spread else device, dtype, quantisation)
    control.check()
    adaptation = Adaptation(config)
    adaptation.install(model, Material(prepared.train, config.training.seed, tokenizer, check=control.check))
    _check_vocabulary(model, prepared.largest_id)
    if spread:
        shard_base(model, device, ranks)
    loss, batches, packing, reason = choose_path(model, prepared.train, config.training.packing, device)
    if reason:
        yield Note(reason)
    training = config.training.model_copy(update={
        "device": _device_to_keep(config, ranks, device), "dtype": name, "packing": "on" if packing else "off"})
    origin = {"base_fingerprint": card.fingerprint, "base_name": card.name, "base_path": str(path),
              "base_origin": card.origin, "base_parameters": card.parameters,
              "data_digest": _digest(chain(prepared.train, prepared.validation))}
    if quantisation is not None:
        origin[ORIGIN_KEY] = quantisation.to_plain()
    if isinstance(config.adapter, FullConfig):
        origin[METHOD_KEY] = FULL
    resolved = config.model_copy(update={"training": training})
    for what, digest in (("base model", card.fingerprint), ("training rows", origin["data_digest"]),
                         ("settings", _digest_of_settings(resolved))):
        ranks.require_same(what, digest)
    return Setup(resolved, model, adaptation, path, device, prepared.train, prepared.validation, loss, batches,
                 origin, ranks)


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


def _digest(rows: Iterable[EncodedRow]) -> str:
    """SHA-256 over all tokens of the rows in their order: a resumed run must see the same ones."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row.input_ids).to_bytes(8, "little"))
        digest.update(row.input_ids.tobytes())
        digest.update(row.supervised.tobytes())
    return digest.hexdigest()


def _refuse(found: Sequence[Problem]) -> None:
    """Raise what the form would have written at its fields: a run file need not come from the form."""
    if found:
        first = found[0]
        raise ConfigError(f"{first.field}: {first.message}", first.hint,
                          "\n".join(f"{each.field}: {each.message} {each.hint}".rstrip() for each in found))


def choose_path(model: PreTrainedModel, rows: Sequence[EncodedRow], packing: str, device: torch.device,
                ) -> tuple[SummedLoss, Callable[[Sequence[EncodedRow]], list[Batch]], bool, str]:
    """Use packed rows and the chunked loss where this model computes the same with them.

    A few short rows are run one by one in the plain way and then in the fast way; the sums of the
    losses must agree. Returns the loss, the batcher, whether rows are packed, and why not. Leaves the
    model in evaluation mode: dropout would make the two ways differ.
    """
    probe = probe_rows(rows)
    model.eval()
    with torch.no_grad():
        expected = [_value(direct_loss, model, batch.to(device)) for row in probe for batch in pad([row])]
        whole = sum(expected)
        if packing != "off" and _packs(chunked_loss, model, probe, whole, device):  # both at once, as nearly always
            return chunked_loss, pack, True, ""
        loss: SummedLoss = direct_loss
        reasons = []
        if _agrees(lambda: _value(chunked_loss, model, pad(probe)[0].to(device)), whole, model.dtype):
            loss = chunked_loss
        else:
            reasons.append("the output layer of this model is computed the plain way, with more memory")
        if packing == "off":
            return loss, pad, False, ""
        packed = _packs(loss, model, probe, whole, device)
    if not packed:
        if packing == "on":
            raise CoreError("Packing is on, but this model can not keep packed rows apart exactly.",
                            "Set packing to auto or off.")
        reasons.append("rows are padded, as packed rows would not be kept apart exactly in this model")
    return loss, pack if packed else pad, packed, "; ".join(reasons).capitalize()


def _packs(loss: SummedLoss, model: PreTrainedModel, probe: Sequence[EncodedRow], expected: float,
           device: torch.device) -> bool:
    """True where packed rows have the loss that they have alone."""
    with segmented_attention(model):
        return _agrees(lambda: _value(loss, model, pack(probe)[0].to(device)), expected, model.dtype)


def probe_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """A few short rows, on which two ways to compute the same are compared."""
    shortest = np.argsort(row_lengths(rows), kind="stable")[:_PROBE_ROWS]
    return [_shortened(rows[number]) for number in shortest.tolist()]


def _shortened(row: EncodedRow) -> EncodedRow:
    """The last part of a row, which holds supervised tokens, as a short probe."""
    ids, supervised = row.input_ids[-_PROBE_TOKENS:], row.supervised[-_PROBE_TOKENS:].copy()
    supervised[0] = False
    supervised[-1] = len(ids) > 1
    return replace(row, input_ids=ids, supervised=supervised)


def _value(loss: SummedLoss, model: PreTrainedModel, batch: Batch) -> float:
    return float(loss(model, batch))


def _agrees(compute: Callable[[], float], expected: float, dtype: torch.dtype) -> bool:
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    try:
        return abs(compute() - expected) <= tolerance * max(1.0, abs(expected))
    except (NotImplementedError, AssertionError, AttributeError, TypeError):
        return False  # a family that lacks what the fast way needs


def started_now() -> tuple[float, int]:
    """Wall clock in seconds since the epoch, and this process's id."""
    return time.time(), os.getpid()
