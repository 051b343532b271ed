"""Our model and peft's on the same base, with the same numbers in everything that is trained."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matrix import STEPS, Family, Method
from peft import PeftConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertForMaskedLM, PreTrainedModel

from core.config import QLoraConfig
from core.data.template import EncodedRow
from core.lora.adaptation import Adaptation
from core.lora.inject import lora_layers
from core.lora.method import Material, train_mode
from core.models.load import load_model
from core.models.quantise import loading_config, quantisation_of

IDS = torch.randint(3, 380, (2, 24), generator=torch.Generator().manual_seed(7))
CPU = torch.device("cpu")
RATE = 1e-3
NOTHING = 1e-8  # of the largest gradient: one below is zero but for rounding, as that of a key's bias


@dataclass(frozen=True)
class Base:
    """One tiny model on the disk."""

    folder: Path
    family: Family

    def ours(self, method: Method) -> PreTrainedModel:
        """As our core loads it; BERT, which our program does not offer, as transformers does."""
        if self.family.name == "bert":
            return copy.deepcopy(self._plain)
        adapter = method.run(self.family).adapter
        return load_model(self.folder, CPU, torch.float32, quantisation_of(adapter, torch.float32))

    def theirs(self, method: Method) -> Any:
        """For peft, as transformers loads it."""
        quantisation = quantisation_of(method.run(self.family).adapter, torch.float32)
        if quantisation is None:
            return copy.deepcopy(self._plain)
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, device_map={"": "cpu"},
                                                    quantization_config=loading_config(quantisation))

    def plain(self) -> PreTrainedModel:
        """The model itself, in fp32."""
        return copy.deepcopy(self._plain)

    @cached_property
    def _plain(self) -> PreTrainedModel:
        kind: Any = BertForMaskedLM if self.family.name == "bert" else AutoModelForCausalLM
        return kind.from_pretrained(self.folder, dtype=torch.float32).requires_grad_(False).eval()


class Twins:
    """Both models; `pairs` holds our trained parameter and peft's by our name."""

    def __init__(self, method: Method, base: Base, initial: Path) -> None:
        self.method, self.base, self.initial = method, base, initial
        self.ours = base.ours(method)
        self.adaptation = Adaptation(method.run(base.family))
        self.adaptation.install(self.ours, Material(rows(), 0))
        list(self.adaptation.begin(self.ours, 0, STEPS))
        self.peft = self._peft()
        ours = self.adaptation.parameters(self.ours)
        theirs = {our_name(name): parameter for name, parameter in self.peft.named_parameters()
                  if parameter.requires_grad}
        assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
        self.pairs = {name: (ours[name], theirs[name]) for name in ours}
        self.take_over()

    def _peft(self) -> Any:
        targets = list(lora_layers(self.ours))
        torch.manual_seed(0)
        model = get_peft_model(self.base.theirs(self.method), self.method.peft_config(self.base.family, targets))
        if self.method.init == "eva":
            ids = torch.stack([torch.from_numpy(row.input_ids).long() for row in rows()])
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
            initialize_lora_eva_weights(model, [batch], show_progress_bar=False)
        if self.method.init in ("pissa", "olora"):  # what peft takes off when it writes plain LoRA
            config = model.peft_config["default"]
            config.init_lora_weights = True
            model.save_pretrained(self.initial)
            config.init_lora_weights = self.method.init
        # in training mode bitsandbytes computes int8 on dequantised weights, as we always do; dropout is 0
        return model.train() if self.method.kind is QLoraConfig else model.eval()

    @torch.no_grad()
    def take_over(self) -> None:
        """Our model begins with peft's start; then both are moved as if they had been trained."""
        self.copy()
        for layer in lora_layers(self.ours).values():
            if layer.start() is not None:
                layer.count_from_here()
        generator = torch.Generator().manual_seed(1)
        for _, theirs in self.pairs.values():
            theirs.add_(0.05 * torch.randn(theirs.shape, generator=generator))
        self.copy()

    @torch.no_grad()
    def copy(self) -> None:
        """Give ours the numbers of peft's."""
        for ours, theirs in self.pairs.values():
            ours.copy_(theirs)

    def double(self) -> "Twins":
        """In fp64, where sums in another order differ by nothing that matters."""
        self.ours.double()
        self.peft.double()
        return self

    def write(self, folder: Path) -> Path:
        """Our adapter folder."""
        folder.mkdir()
        self.adaptation.write(folder, self.ours, torch.float32, str(self.base.folder), {})
        return folder

    def write_peft(self, folder: Path) -> Path:
        """Peft's adapter folder; of a start from the base's weights as plain LoRA, which peft offers."""
        extra = {"path_initial_model_for_weight_conversion": str(self.initial)} if self.initial.exists() else {}
        self.peft.save_pretrained(folder, **extra)
        return folder

    def read_by_peft(self, folder: Path) -> Any:
        """An adapter folder on an untouched base, as peft reads it."""
        config = PeftConfig.from_pretrained(folder)
        if self.base.family.name == "bert":  # our program writes files for models that continue text alone
            config.task_type = None
        model = PeftModel.from_pretrained(self.base.theirs(self.method), folder, config=config)
        return model.train() if self.method.kind is QLoraConfig else model.eval()

    def backward(self) -> None:
        """The gradients of one step on both."""
        loss = self.ours(input_ids=IDS, labels=IDS).loss
        penalty = self.adaptation.penalty(self.ours)
        (loss if penalty is None else loss + penalty).backward()
        # peft adds AdaLoRA's penalty in its own model, which it passes by where it was told no task
        peft = self.peft.base_model if self.base.family.name == "bert" else self.peft
        peft(input_ids=IDS, labels=IDS).loss.backward()

    def gradient_difference(self) -> float:
        """‖ours - peft's‖ / ‖peft's‖ of the gradients of one step, the largest of all tensors."""
        train_mode(self.ours)
        self.backward()
        gradients = [(ours.grad, theirs.grad) for ours, theirs in self.pairs.values()]
        floor = NOTHING * max(float(theirs.norm()) for _, theirs in gradients if theirs is not None)
        differences = [relative(ours, theirs, floor) for ours, theirs in gradients]
        for model in (self.ours, self.peft):
            model.zero_grad()
        return max(differences)

    def train(self, steps: int) -> None:
        """Steps of AdamW on both, with the same rows."""
        groups = self.adaptation.optimizer_groups(self.ours)
        ours = torch.optim.AdamW([{"params": group["params"], "lr": RATE * group["rate"]} for group in groups],
                                 weight_decay=0.0)
        ratio = getattr(self.method.run(self.base.family).adapter, "lora_plus_ratio", 1.0)
        if ratio > 1:
            theirs = create_loraplus_optimizer(self.peft, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=ratio)
        else:
            theirs = torch.optim.AdamW([theirs for _, theirs in self.pairs.values()], lr=RATE, weight_decay=0.0)
        train_mode(self.ours)
        for step in range(1, steps + 1):
            self.backward()
            ours.step()
            theirs.step()
            list(self.adaptation.after_step(self.ours, step, STEPS))
            if hasattr(self.peft.base_model, "update_and_allocate"):
                self.peft.base_model.update_and_allocate(step)
            ours.zero_grad()
            theirs.zero_grad()

    def weight_difference(self) -> float:
        """The largest difference of any trained number."""
        return max(float((ours - theirs).detach().abs().max()) for ours, theirs in self.pairs.values())


def rows() -> list[EncodedRow]:
    """Training rows for starts that look at the data."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 380, (8, 30), generator=generator, dtype=torch.int32).numpy()
    return [EncodedRow(number, row, row > 0, False, 30) for number, row in enumerate(ids)]


def our_name(name: str) -> str:
    """Our name of a trained parameter of peft's model."""
    if name == "prompt_encoder.default.embedding.weight":
        return "prefix_tuning.embedding"
    name = name.removeprefix("base_model.model.")
    for part in (".default", ".modules_to_save", ".base_layer"):
        name = name.replace(part, "")
    for theirs, ours in (("lora_magnitude_vector", "magnitude"), ("lora_embedding_", "lora_")):
        name = name.replace(theirs, ours)
    module, _, part = name.removesuffix(".weight").rpartition(".")
    return f"{module}.{part.lower()}" if part.startswith("lora_") or part == "magnitude" else name


def relative(ours: Tensor | None, theirs: Tensor | None, floor: float) -> float:
    """‖ours - theirs‖ / ‖theirs‖, the latter at least `floor`."""
    assert ours is not None and theirs is not None
    return float((ours - theirs).norm()) / max(float(theirs.norm()), floor)


@torch.no_grad()
def logits_of(model: nn.Module | Any) -> Tensor:
    """Of the fixed rows."""
    return model(input_ids=IDS).logits
