"""LoRA as a method: layers put on the chosen modules, A and B trained, written in PEFT layout."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.config import PatternedConfig
from core.errors import AdapterError
from core.events import Event, Note
from core.lora.adapter_file import adapter_tensors, peft_config, write_adapter
from core.lora.experts import expert_matrices
from core.lora.fused_qkv import noted_parts
from core.lora.init import initialise
from core.lora.inject import inject, lora_layers
from core.lora.layers import LoraLayer
from core.lora.method import Material, Method, ParameterGroup
from core.lora.more_layers import LoraEmbedding, TiedLoraHead


class Lora(Method):
    """h = W x + (alpha / rank) B A x on every chosen module (arXiv 2106.09685)."""

    kind: ClassVar[type[LoraLayer]] = LoraLayer

    def __init__(self, adapter: PatternedConfig) -> None:
        self.adapter = adapter
        self._layers: dict[str, LoraLayer] = {}
        self._remarks: list[str] = []

    def install(self, model: PreTrainedModel, material: Material) -> None:
        """Put a layer on every chosen module. Raises AdapterError where that does not fit."""
        self._layers = inject(model, self.adapter, material.seed, self.kind)
        self._remarks = initialise(model, self._layers, self.adapter, material)

    def begin(self, model: PreTrainedModel, step: int, total: int) -> Iterator[Event]:
        """Tell what was found for the start."""
        yield from (Note(remark) for remark in self._remarks if step == 0)

    def state(self) -> dict[str, Tensor]:
        """The starts that are taken off the update (PiSSA, OLoRA)."""
        return {f"{name}.{part}": tensor for name, layer in self._layers.items()
                for part, tensor in zip(("start_a", "start_b"), layer.start() or (), strict=False)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave. Raises AdapterError where the run file has another start now."""
        if state.keys() != self.state().keys():
            raise AdapterError("The checkpoint began in another way than the run file says now.",
                               "Bring back the old adapter.init, or start a new run.")
        for name, layer in self._layers.items():
            if layer.start() is not None:
                layer.count_from_here(state[f"{name}.start_a"], state[f"{name}.start_b"])

    def groups(self, model: PreTrainedModel) -> list[ParameterGroup]:
        """A, and B with its own learning rate where LoRA+ is on (arXiv 2402.12354)."""
        layers = {name: layer for name, layer in (lora_layers(model) | expert_matrices(model)).items()
                  if not isinstance(layer, TiedLoraHead)}  # which has nothing of its own
        # of an embedding A is zero at the start, and its gradients are as small as B's elsewhere
        embeddings = {name for name, layer in layers.items() if isinstance(layer, LoraEmbedding)}
        return [ParameterGroup({f"{name}.lora_a": layer.lora_a for name, layer in layers.items()}
                               | {f"{name}.lora_b": layers[name].lora_b for name in embeddings}),
                ParameterGroup({f"{name}.lora_b": layer.lora_b for name, layer in layers.items()
                                if name not in embeddings}, rate=self.adapter.lora_plus_ratio)]

    def write(self, folder: Path, model: PreTrainedModel, dtype: torch.dtype, base_name: str,
              origin: dict[str, Any]) -> None:
        """adapter_config.json, adapter_model.safetensors, workbench.json."""
        write_adapter(folder, adapter_tensors(model, dtype), peft_config(model, self.adapter, base_name),
                      {**origin, **noted_parts(model)})
