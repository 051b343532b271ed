"""The same adapter in our model and in peft's, trained side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from core.config import DoraConfig, LoraConfig, RunConfig
from core.lora.adaptation import Adaptation
from core.lora.dora import DoraLayer
from core.lora.inject import lora_layers
from core.lora.layers import LoraLayer
from core.lora.method import Material, train_mode
from core.models.load import load_model

IDS = torch.arange(20, 84).reshape(2, 32) * 4 % 380
TARGETS = {"gpt2": ["c_attn", "c_fc"], "gpt_neox": ["query_key_value", "dense_h_to_4h"], "phi3": ["qkv_proj"]}
USUAL_TARGETS = ["q_proj", "v_proj", "down_proj"]


@dataclass
class Pair:
    """Our model and peft's on the same base, their layers with the same numbers."""

    ours: PreTrainedModel
    adaptation: Adaptation
    reference: Any
    layers: dict[str, LoraLayer]
    peft_layers: dict[str, Any]

    def differences(self) -> dict[str, float]:
        """The largest difference of every trained tensor."""
        return {f"{name}.{part}": float((ours - theirs).detach().abs().max()) for name, layer in self.layers.items()
                for part, (ours, theirs) in trained(layer, self.peft_layers[name]).items()}

    def logit_difference(self) -> float:
        with torch.no_grad():
            return float((self.ours(IDS).logits - self.reference(IDS).logits).abs().max())


def trained(layer: LoraLayer, other: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Our tensor and peft's of each part of a layer."""
    found: dict[str, tuple[Tensor, Tensor]] = {"A": (layer.lora_a, other.lora_A["default"].weight),
                                               "B": (layer.lora_b, other.lora_B["default"].weight)}
    if isinstance(layer, DoraLayer):
        found["m"] = (layer.magnitude, other.lora_magnitude_vector["default"].weight)
    return found


def make_pair(base: Path, family: str, adapter: LoraConfig | DoraConfig, peft_fields: dict[str, Any], *,
              random_b: bool = False) -> Pair:
    """Put `adapter` on our model, and the same in peft's words on peft's; ours takes over peft's numbers."""
    targets = TARGETS.get(family, USUAL_TARGETS)
    adapter = adapter.model_copy(update={"target_modules": tuple(targets)})
    ours = load_model(base, torch.device("cpu"), torch.float32)
    adaptation = Adaptation(RunConfig(adapter=adapter))
    adaptation.install(ours, Material([], 0))
    config = PeftConfig(r=adapter.rank, lora_alpha=adapter.alpha,  # type: ignore[arg-type]
                        lora_dropout=adapter.dropout, target_modules=targets,
                        use_dora=isinstance(adapter, DoraConfig), use_rslora=adapter.rslora,
                        fan_in_fan_out=family == "gpt2", task_type="CAUSAL_LM", **peft_fields)
    torch.manual_seed(0)
    reference = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).eval()
    peft_layers = {name.removeprefix("base_model.model."): module for name, module in reference.named_modules()
                   if hasattr(module, "lora_A") and "default" in module.lora_A}
    pair = Pair(ours, adaptation, reference, lora_layers(ours), peft_layers)
    assert pair.layers.keys() == peft_layers.keys()
    for name, layer in pair.layers.items():
        _take(layer, peft_layers[name], random_b)
    return pair


@torch.no_grad()
def _take(layer: LoraLayer, other: Any, random_b: bool) -> None:
    parts = trained(layer, other)
    if random_b:
        nn.init.normal_(parts["B"][1], std=0.05)
        if "m" in parts:
            parts["m"][1].mul_(1 + 0.1 * torch.randn(layer.out_features))
    for mine, theirs in parts.values():
        mine.copy_(theirs)
    if layer.start() is not None:
        layer.count_from_here()


def train_both(pair: Pair, steps: int, optimizer: torch.optim.Optimizer, reference_optimizer: torch.optim.Optimizer,
               rate: float) -> None:
    """`steps` steps on both, with the same rows; dropout draws from the same seed."""
    train_mode(pair.ours)
    pair.reference.train()
    for step in range(steps):
        for model, own in ((pair.ours, optimizer), (pair.reference, reference_optimizer)):
            own.zero_grad()
            torch.manual_seed(step)
            model(input_ids=IDS, labels=IDS).loss.backward()
            for group in own.param_groups if own is optimizer else ():
                group["lr"] = rate * group["rate"]
            own.step()
    pair.ours.eval()
    pair.reference.eval()


def adam(pair: Pair, rate: float, decay: float = 0.0) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """AdamW for both."""
    mine = torch.optim.AdamW(pair.adaptation.optimizer_groups(pair.ours), lr=rate, weight_decay=decay)
    theirs = [parameter for parameter in pair.reference.parameters() if parameter.requires_grad]
    return mine, torch.optim.AdamW(theirs, lr=rate, weight_decay=decay)


def gradient_differences(pair: Pair) -> dict[str, float]:
    """Relative difference of the gradients of one step, by tensor."""
    for model in (pair.ours, pair.reference):
        model.zero_grad()
        torch.manual_seed(5)
        model(input_ids=IDS, labels=IDS).loss.backward()
    return {f"{name}.{part}": float((mine.grad - theirs.grad).norm() / theirs.grad.norm().clamp_min(1e-12))
            for name, layer in pair.layers.items()
            for part, (mine, theirs) in trained(layer, pair.peft_layers[name]).items()
            if mine.grad is not None and theirs.grad is not None and float(theirs.grad.norm()) > 0}


def read_by_peft(base: Path, adapter: Path) -> Any:
    """The adapter in a folder, on an untouched base, as peft reads it."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
