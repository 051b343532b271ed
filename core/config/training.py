"""The tables [model], [data] and [training]."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import field_validator

from core.config.section import Dtype, Section, option


class ModelConfig(Section):
    """Which base model is adapted."""

    path: str = option(
        "", "Base model",
        "A model folder, a name in the model library, or 'starter' for the model that comes along.",
        group="Model",
    )


class DataConfig(Section):
    """Which rows are learned from and how they are cut."""

    train: tuple[str, ...] = option(
        (), "Training files", "Files of conversations, instructions or plain text.", group="Data")
    validation_fraction: float = option(
        0.05, "Held out", "Share of the rows kept aside, by the seed, to measure the validation loss.",
        group="Data", ge=0.0, le=0.5)
    max_length: int = option(
        512, "Maximum length", "Rows longer than this are cut at the end; the Data page counts them.",
        group="Data", unit="tokens", ge=8, le=131072)
    train_on: Literal["answers", "all"] = option(
        "answers", "Learn from",
        "Answers: the loss counts only what the assistant says. All: every token counts.", group="Data")

    @field_validator("train", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class TrainingConfig(Section):
    """How the adapter is trained."""

    epochs: float = option(
        3.0, "Epochs", "How often every row is seen.", group="Learning", gt=0.0, le=1000.0)
    max_steps: int = option(
        0, "Stop after", "Ends the run after so many steps; 0 means all epochs.",
        group="Learning", unit="steps", more=True, ge=0)
    batch_size: int = option(
        8, "Batch size", "Rows learned from at once. Smaller needs less memory.",
        group="Learning", unit="rows", ge=1, le=4096)
    gradient_accumulation: int = option(
        1, "Accumulate", "Batches added up before the adapter is changed once.",
        group="Learning", unit="batches", more=True, ge=1, le=4096)
    learning_rate: float = option(
        2e-4, "Learning rate", "How far each step goes. 2e-4 is usual for LoRA; halve it if the loss jumps.",
        group="Learning", gt=0.0, le=1.0)
    schedule: Literal["constant", "linear", "cosine"] = option(
        "cosine", "Schedule", "How the learning rate falls after the warm-up.", group="Learning")
    warmup_steps: int = option(
        10, "Warm-up", "The learning rate rises from zero over so many steps.",
        group="Learning", unit="steps", ge=0)
    weight_decay: float = option(
        0.0, "Weight decay", "Pulls the adapter towards zero (AdamW).", group="Learning", more=True, ge=0.0, le=1.0)
    adam_beta2: float = option(
        0.999, "Adam's second beta", "How long AdamW remembers how large gradients were; 0.98 suits short runs.",
        group="Learning", more=True, ge=0.0, lt=1.0)
    max_grad_norm: float = option(
        1.0, "Clip gradients at", "Longer gradients are shortened to this norm; 0 switches it off.",
        group="Learning", more=True, ge=0.0)
    seed: int = option(
        0, "Seed", "The same seed gives the same run, bit for bit on the CPU.",
        group="Learning", more=True, ge=0, le=2**31 - 1)
    evaluate_every: int = option(
        50, "Evaluate every", "Validation loss is measured every so many steps and at the end; 0: only at the end.",
        group="Learning", unit="steps", more=True, ge=0)
    checkpoint_every: int = option(
        50, "Checkpoint every", "A run that was interrupted loses at most so many steps; 0: only at the end.",
        group="Learning", unit="steps", more=True, ge=0)
    keep_checkpoints: int = option(
        2, "Keep checkpoints", "The newest ones that stay on the disk; the best one stays besides.",
        group="Learning", more=True, ge=1, le=1000)
    device: str = option(
        "auto", "Device", "Where to compute: auto, cpu, mps, cuda:0 and so on, or all for every GPU of this machine.",
        group="Machine", more=True)
    parallel: Literal["auto", "replicate", "shard"] = option(
        "auto", "Several GPUs",
        "Replicate: each holds the whole base. Shard: each holds a part of it, slower. auto: shard only where the "
        "base does not fit on one.",
        group="Machine", more=True)
    dtype: Dtype = option(
        "auto", "Number type", "Type of the frozen base: auto tries which one this machine computes faster.",
        group="Machine", more=True)
    packing: Literal["auto", "on", "off"] = option(
        "auto", "Packing",
        "Rows are laid end to end instead of padded, kept apart exactly; auto checks that the model can.",
        group="Machine", more=True)
    activation_checkpointing: Literal["auto", "on", "off"] = option(
        "auto", "Activation checkpointing",
        "Layers are computed a second time for the backward pass instead of being kept: far less memory, a step takes "
        "about a third longer, the result is the same. auto: where the run would not fit otherwise.",
        group="Machine", more=True)
    shared_prefix: Literal["auto", "off"] = option(
        "auto", "Shared prefix",
        "The tokens that all rows of a step begin with, such as a system prompt, are computed once for all of them; "
        "the result is the same. auto: where that is exact and saves something; not with dropout, padded rows, a "
        "sharded base or the frozen-layer cache.",
        group="Machine", more=True)
    frozen_cache: Literal["auto", "on", "off"] = option(
        "auto", "Frozen-layer cache",
        "What the layers below the lowest trained one give is kept on the disk and not computed again in later "
        "epochs; auto: where that is faster and fits.",
        group="Machine", more=True)

    @field_validator("device")
    @classmethod
    def _device_is_named(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?|all", value):
            raise ValueError("it must be auto, all, cpu, mps, or cuda:0 and so on")
        return value

    @property
    def on_cuda(self) -> bool:
        """True where a GPU with CUDA is named."""
        return self.device == "all" or self.device.startswith("cuda")


def missing_device(name: str, devices: Sequence[str]) -> tuple[str, str] | None:
    """A sentence and a hint where the machine that has `devices` lacks what `training.device` names; else None."""
    wanted = "cuda:0" if name == "cuda" else name
    if name in ("auto", "all") or wanted in devices:
        return None
    return f"This machine has no device {name}.", f"It has: {', '.join(devices)}."
