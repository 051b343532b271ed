"""AdaLoRA: the update as P Λ Q, whose triplets are kept where they matter most (arXiv 2303.10512).

    h = W x + alpha / r · P Λ Q x            Q is lora_a (r, in), Λ is lora_e (r, 1), P is lora_b (out, r)

Training starts with more rank than asked for. After every step each weight's sensitivity |w · dL/dw|
is averaged, and so is its spread; their product, summed up for a triplet (one column of P, one entry
of Λ, one row of Q), says how much the triplet matters (equations 8 to 12). While the budget falls, the
entries of Λ of the triplets that matter least are set to zero; between two choices they may grow again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.config import AdaLoraConfig
from core.errors import AdapterError
from core.events import Event, RanksChosen
from core.lora.adalora_file import layer_tensors, schedule_config
from core.lora.adapter_file import target_names, write_adapter
from core.lora.beside_file import beside_fields, beside_tensors
from core.lora.inject import inject, lora_layers
from core.lora.layers import LoraLayer
from core.lora.method import Material, Method, ParameterGroup
from core.words import plural

_SPREAD = 0.02  # standard deviation of P and Q at the start, as the paper's code draws them


class AdaLoraLayer(LoraLayer):
    """A LoraLayer in the form P Λ Q; Λ is zero at the start, so that the layer gives what its base gives.

    Shapes: lora_a (r, in), lora_e (r, 1), lora_b (out, r), in fp32.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0,
                 generator: torch.Generator | None = None) -> None:
        super().__init__(base, rank, alpha, dropout, generator)
        device = self.lora_a.device
        for parameter in (self.lora_a, self.lora_b):
            drawn = torch.empty(parameter.shape).normal_(0.0, _SPREAD, generator=generator)
            parameter.data.copy_(drawn)
        self.lora_e = nn.Parameter(torch.zeros(rank, 1, device=device))

    def right(self) -> Tensor:
        """Λ Q, (r, in)."""
        return self.lora_a * self.lora_e


class AdaLora(Method):
    """P Λ Q on every chosen module, with a budget of ranks that falls from the first rank to the target."""

    def __init__(self, adapter: AdaLoraConfig) -> None:
        self.adapter = adapter
        self._total = 0
        self._importance: dict[str, Tensor] = {}  # moving average of |w · dL/dw| by parameter name, equation 9
        self._uncertainty: dict[str, Tensor] = {}  # moving average of its spread, equation 10
        self._kept: dict[str, Tensor] = {}  # (r,) bool by module name: the triplets of the last choice

    def install(self, model: PreTrainedModel, material: Material) -> None:
        """Put a layer on every chosen module. Raises AdapterError where that does not fit."""
        inject(model, self.adapter, material.seed, AdaLoraLayer)

    def groups(self, model: PreTrainedModel) -> list[ParameterGroup]:
        """P, Λ and Q."""
        return [ParameterGroup(_parameters(model))]

    def begin(self, model: PreTrainedModel, step: int, total: int) -> Iterator[Event]:
        """Fix the schedule and tell the first ranks. Raises AdapterError where no step is left for the choice."""
        self._total = total
        if not self.adapter.has_steps_to_prune(total):
            start, end = self.adapter.pruning_steps(total)
            raise AdapterError(f"A run of {plural(total, 'step')} leaves none in which the ranks could be chosen "
                               f"(from step {start:,} until step {end:,}).",
                               "Train longer, or leave more room between Pruning from and Pruning until.")
        if step == 0:
            ranks = {name: layer.rank for name, layer in adalora_layers(model).items()}
            yield RanksChosen(0, ranks, sum(ranks.values()))

    def is_settled(self, step: int, total: int) -> bool:
        """True once the budget has reached its target."""
        return step >= self.adapter.pruning_steps(total)[1]

    def penalty(self, model: PreTrainedModel) -> Tensor | None:
        """How far P and Q are from orthogonal: the mean of ||Pᵀ P - I|| and ||Q Qᵀ - I|| over all matrices.

        Equation 4 writes the norms squared; the paper's code takes them as they are, and so does PEFT.
        """
        if self.adapter.orthogonality == 0:
            return None
        terms = []
        for layer in adalora_layers(model).values():
            identity = torch.eye(layer.rank, device=layer.lora_a.device)
            terms.append(torch.linalg.matrix_norm(layer.lora_a @ layer.lora_a.T - identity))
            terms.append(torch.linalg.matrix_norm(layer.lora_b.T @ layer.lora_b - identity))
        return self.adapter.orthogonality * torch.stack(terms).mean()

    @torch.no_grad()
    def after_step(self, model: PreTrainedModel, step: int, total: int) -> Iterator[Event]:
        """Weigh every triplet and, where it is time, keep those that matter most."""
        start, end = self.adapter.pruning_steps(total)
        if step < end:
            self._weigh(model)
        due = start < step < end and step % self.adapter.budget_every == 0
        if step == end or (due and self._importance):
            before, budget = _ranks(self._kept), self.budget(model, step, total)
            self._choose(model, budget)
            if step == end or _ranks(self._kept) != before:
                yield RanksChosen(step, _ranks(self._kept), budget)
        elif step > end:
            self._prune(model)
        if step == end:  # the ranks stay as they are from here on
            self._importance, self._uncertainty = {}, {}

    def budget(self, model: PreTrainedModel, step: int, total: int) -> int:
        """How many triplets of all matrices together may stay at `step`: a cubic fall (equation 13)."""
        start, end = self.adapter.pruning_steps(total)
        layers = adalora_layers(model)
        first, target = sum(layer.rank for layer in layers.values()), self.adapter.rank * len(layers)
        if step <= start:
            return first
        left = max(0.0, 1 - (step - start) / (end - start))
        return int((first - target) * left ** 3 + target)

    def _weigh(self, model: PreTrainedModel) -> None:
        """Sensitivity and its spread of every trained number; a step that was left out teaches nothing."""
        parameters = _parameters(model)
        gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values()):
            return
        keep, keep_spread = self.adapter.sensitivity_beta, self.adapter.uncertainty_beta
        for name, gradient in gradients.items():
            sensitivity = (parameters[name] * gradient).abs()
            before = self._importance.get(name, torch.zeros_like(sensitivity)).to(sensitivity.device)
            importance = keep * before + (1 - keep) * sensitivity
            spread = self._uncertainty.get(name, torch.zeros_like(sensitivity)).to(sensitivity.device)
            self._uncertainty[name] = keep_spread * spread + (1 - keep_spread) * (sensitivity - importance).abs()
            self._importance[name] = importance

    def _scores(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """How much each triplet of each module matters, (r,): Λ's own score and the mean of P's and of Q's."""
        scores = {}
        for name in adalora_layers(model):
            a, e, b = (self._importance[f"{name}.{part}"] * self._uncertainty[f"{name}.{part}"]
                       for part in ("lora_a", "lora_e", "lora_b"))
            scores[name] = e.view(-1) + torch.stack([a.mean(dim=1), b.mean(dim=0)], dim=1).sum(dim=1)
        return scores

    def _choose(self, model: PreTrainedModel, budget: int) -> None:
        """Keep the `budget` triplets that matter most; those that tie with the first that goes, go with it."""
        if not self._importance:
            raise AdapterError("No step gave a finite gradient, so the ranks can not be chosen.",
                               "Lower the learning rate or train in fp32.")
        scores = self._scores(model)
        everything = torch.cat(list(scores.values()))
        surplus = len(everything) - budget
        limit = float(torch.kthvalue(everything, surplus)[0]) if surplus > 0 else -1.0
        self._kept = {name: (score > limit).cpu() for name, score in scores.items()}
        self._prune(model)

    def _prune(self, model: PreTrainedModel) -> None:
        """Set the entries of Λ to zero whose triplets were not kept."""
        for name, layer in adalora_layers(model).items():
            layer.lora_e.data.masked_fill_(~self._kept[name].to(layer.lora_e.device)[:, None], 0.0)

    def state(self) -> dict[str, Tensor]:
        """The averages while ranks are being chosen, and the last choice."""
        return {**{f"importance.{name}": tensor for name, tensor in self._importance.items()},
                **{f"uncertainty.{name}": tensor for name, tensor in self._uncertainty.items()},
                **{f"kept.{name}": tensor for name, tensor in self._kept.items()}}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for kind, place in (("importance.", self._importance), ("uncertainty.", self._uncertainty),
                            ("kept.", self._kept)):
            place.clear()
            place |= {name.removeprefix(kind): tensor for name, tensor in state.items() if name.startswith(kind)}

    def write(self, folder: Path, model: PreTrainedModel, dtype: torch.dtype, base_name: str,
              origin: dict[str, Any]) -> None:
        """adapter_config.json (ADALORA), adapter_model.safetensors, workbench.json; pruned triplets are left out.

        A triplet that has grown again since the last choice is written, so that the file gives what the model gives.
        """
        layers = adalora_layers(model)
        kept = {name: self._kept[name] | (layer.lora_e.detach().cpu().view(-1) != 0)
                for name, layer in layers.items()} if self._kept else {}
        tensors = {}
        for name, layer in layers.items():
            tensors |= layer_tensors(name, layer.lora_a, layer.lora_e, layer.lora_b, kept.get(name), dtype)
        tensors |= beside_tensors(model, dtype)
        write_adapter(folder, tensors, self._config(model, base_name, kept), origin)

    def _config(self, model: PreTrainedModel, base_name: str, kept: dict[str, Tensor]) -> dict[str, Any]:
        """adapter_config.json; `r` is left out, which PEFT's AdaLoRA does not use and warns of."""
        alpha, layers = self.adapter.alpha, lora_layers(model)
        return {
            "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name,
            "lora_alpha": int(alpha) if alpha.is_integer() else alpha, "lora_dropout": self.adapter.dropout,
            "target_modules": target_names(model, layers),
            "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in layers.values()),
            "init_lora_weights": True, "inference_mode": True, "revision": None,
            **beside_fields(model, self.adapter), **schedule_config(self.adapter, self._total, kept),
        }


def adalora_layers(model: nn.Module) -> dict[str, AdaLoraLayer]:
    """The AdaLoraLayers of `model` by module name, in the model's order."""
    return {name: layer for name, layer in lora_layers(model).items() if isinstance(layer, AdaLoraLayer)}


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{name}.{part}": getattr(layer, part) for name, layer in adalora_layers(model).items()
            for part in ("lora_a", "lora_e", "lora_b")}


def _ranks(kept: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in kept.items()}
