"""LoRA as a method: layers put on the chosen modules, A and B trained, written in PEFT layout."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from core.config import PatternedConfig
from core.lora.adapter_file import adapter_tensors, peft_config, write_adapter
from core.lora.experts import expert_matrices
from core.lora.inject import inject, lora_layers
from core.lora.layers import LoraLayer
from core.lora.more_layers import LoraEmbedding, TiedLoraHead
from core.lora.method import Material, Method, ParameterGroup


class Lora(Method):
    """h = W x + (alpha / rank) B A x on every chosen module (arXiv 2106.09685)."""

    kind: ClassVar[type[LoraLayer]] = LoraLayer

    def __init__(self, adapter: PatternedConfig) -> None:
        self.adapter = adapter

    def install(self, model: PreTrainedModel, material: Material) -> None:
        """Put a layer on every chosen module. Raises AdapterError where that does not fit."""
        inject(model, self.adapter, material.seed, self.kind)

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
        write_adapter(folder, adapter_tensors(model, dtype), peft_config(model, self.adapter, base_name), origin)
