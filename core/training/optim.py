"""The optimizer of a run, and its state as plain tensors for checkpoints."""

from typing import Any

import torch
from torch import Tensor, nn

from core.config import QLoraConfig, RunConfig
from core.errors import CoreError
from core.models.quantise import bitsandbytes

_STEP = "step"


def make_optimizer(groups: list[dict[str, Any]], config: RunConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW over `groups`; with QLoRA on CUDA, where asked for, with 8-bit or paged moments.

    Raises:
        CoreError: moments that need CUDA, on another device.
    """
    training = config.training
    name = config.adapter.optimizer if isinstance(config.adapter, QLoraConfig) else "adamw"
    settings: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay,
                                "betas": (0.9, training.adam_beta2)}
    if name == "adamw":
        # all in one pass over the numbers; torch computes it so on CUDA and on the CPU, on MPS only in later versions
        optimizer = torch.optim.AdamW(groups, **settings, fused=device.type in ("cuda", "cpu"))
        optimizer.register_step_post_hook(_count_as_changed)
        return optimizer
    if device.type != "cuda":
        raise CoreError(f"The optimizer {name} needs CUDA, this run computes on {device}.",
                        "Choose adamw as the optimizer.")
    kinds = bitsandbytes().optim
    return (kinds.AdamW8bit if name == "adamw-8bit" else kinds.PagedAdamW)(groups, **settings)


def _count_as_changed(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """The fused kernel changes numbers without a word; what is made of them once a step (DoRA's norm) must know."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                torch.autograd.graph.increment_version(parameter)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What the optimizer holds for one parameter, by its own names, on the CPU; empty before its first step.

    AdamW's own tensors where they are on the CPU already: to be written before the next step, not to be changed.
    """
    # the 8-bit optimizer keeps one table for all of its parameters, which a file can not hold as one
    shared = not isinstance(optimizer, torch.optim.AdamW)
    found = {}
    for name, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor | int | float):
            tensor = torch.as_tensor(value).detach().cpu().reshape(_stored_shape(value))
            found[name] = tensor.clone() if shared else tensor
    return found


def _stored_shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) and value.ndim else (1,)


def restore_optimizer(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, saved: dict[str, Tensor]) -> None:
    """Give the optimizer back what `optimizer_tensors` took of one parameter."""
    if not saved:
        return
    if isinstance(optimizer, torch.optim.AdamW):
        state: dict[str, Any] = {name: tensor.to(parameter.device) for name, tensor in saved.items() if name != _STEP}
        step = saved[_STEP].reshape(())
        fused = any(group["fused"] for group in optimizer.param_groups)  # it counts where it computes
        optimizer.state[parameter] = state | {_STEP: step.to(parameter.device) if fused else step}
        return
    _restore_in_place(optimizer, parameter, saved)


@torch.no_grad()
def _restore_in_place(optimizer: Any, parameter: nn.Parameter, saved: dict[str, Tensor]) -> None:
    """bitsandbytes makes its own tensors, some of them in memory that the card pages; they are filled."""
    for group_index, group in enumerate(optimizer.param_groups):
        for index, other in enumerate(group["params"]):
            if other is parameter:
                optimizer.init_state(group, parameter, group_index, index)
    state = optimizer.state[parameter]
    for name, tensor in saved.items():
        if isinstance(state[name], Tensor):
            state[name].copy_(tensor.reshape(state[name].shape))
        else:
            state[name] = type(state[name])(tensor.item())
