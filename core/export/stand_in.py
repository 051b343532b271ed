"""A model folder that stands in for the base while an export is made: the base as QLoRA's training saw it, or the
model that a checkpoint of full fine-tuning is. It lies beside the export and is removed with the end of the work."""

import json
from collections.abc import Generator
from pathlib import Path

import torch

from core import files
from core.control import Control
from core.errors import AdapterError, ModelError
from core.events import Event, Progress
from core.export.keys import match_keys, skeleton
from core.export.shards import (
    BLOCK_BYTES,
    FLOATING,
    INDEX_NAME,
    Checkpoint,
    ShardWriter,
    TensorReader,
    TensorRecord,
    TensorSpec,
    in_file_order,
    read_checkpoint,
    write_shard,
)
from core.models.companions import copy_companions, write_model_config
from core.models.quantise import Quantisation, quantised_names, rounded_by
from core.models.save import save_model
from core.training.tuned_base import load_whole_model

_FILE_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def write_dequantised(base: Path, quantisation: Quantisation, folder: Path,
                      control: Control) -> Generator[Event, None, None]:
    """Write `base` into `folder` with the weights that training saw, tensor by tensor.

    Raises:
        ModelError: a quantised weight is stored in another form, or bitsandbytes is missing.
    """
    checkpoint = read_checkpoint(base)
    packed = _packed_records(base, checkpoint)
    done, total = 0, len(checkpoint.tensors)
    with TensorReader() as reader:
        for shard in checkpoint.shards:
            records = list(shard.tensors)
            specs = [TensorSpec(record.name, _FILE_TYPES[quantisation.computed_in] if record.name in packed
                                else record.dtype, record.shape) for record in records]
            order = in_file_order(specs)
            with write_shard(folder / shard.path.name, [specs[place] for place in order], shard.metadata) as writer:
                for record in (records[place] for place in order):
                    yield Progress("Dequantising the base", done, total, "tensors")
                    control.check()
                    if record.name in packed:
                        writer.write(rounded_by(reader.whole(record), quantisation, packed[record.name]))
                    else:
                        _copy(record, reader, writer)
                    done += 1
    if checkpoint.index is not None:
        files.write_text(folder / INDEX_NAME, json.dumps(checkpoint.index, indent=2) + "\n")
    copy_companions(base, folder)
    write_model_config(base, folder, "base", untied=False)


def _packed_records(base: Path, checkpoint: Checkpoint) -> dict[str, bool]:
    """The tensors in the files that loading quantises, each with whether it is stored as (in, out)."""
    model = skeleton(base)
    keys = match_keys(model, checkpoint.tensors)
    key_of = {parameter: key for key, parameter in keys.parameter_of.items()}
    packed = {}
    for name in quantised_names(model):
        key = key_of.get(f"{name}.weight", "")
        if not key or checkpoint.tensors[key].dtype not in FLOATING:
            raise ModelError(f"{name} is stored in another form in the base's files, so the weights that training saw "
                             "can not be written.", "Merge into the original weights, or export the adapter.")
        packed[key] = f"{name}.weight" in keys.transposed
    return packed


def _copy(record: TensorRecord, reader: TensorReader, writer: ShardWriter) -> None:
    for start in range(0, record.nbytes, BLOCK_BYTES):
        writer.write(reader.raw(record, start, min(BLOCK_BYTES, record.nbytes - start)))


def dequantised_bytes(base: Path, quantisation: Quantisation) -> int:
    """Size of what `write_dequantised` writes, at most."""
    numbers = [(record.elements, record.nbytes) for record in read_checkpoint(base).tensors.values()]
    return sum(max(held, count * quantisation.computed_in.itemsize) for count, held in numbers)


def write_assembled(base: Path, checkpoint: Path, folder: Path) -> None:
    """Write the model that a checkpoint of full fine-tuning is, in fp32, into `folder`.

    Raises:
        CoreError: the checkpoint is damaged or of another base.
    """
    save_model(load_whole_model(checkpoint, base, torch.device("cpu"), torch.float32), base, folder, "fp32")


def stored_dtype(base: Path) -> str:
    """The number type of most of the base's bytes: "fp32", "bf16" or "fp16".

    Raises:
        AdapterError: another one.
    """
    sizes: dict[str, int] = {}
    for record in read_checkpoint(base).tensors.values():
        sizes[record.dtype] = sizes.get(record.dtype, 0) + record.nbytes
    names = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
    most = max(sizes, key=lambda name: sizes[name])
    if most not in names:
        raise AdapterError(f"The base's files hold {most} numbers.", "Choose fp32, bf16 or fp16 for the export.")
    return names[most]
