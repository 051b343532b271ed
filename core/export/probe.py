"""Ask a model fixed questions: logits at every position and greedy answers. Whole, or layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from core.control import Control
from core.data.template import render_prompt
from core.errors import ModelError
from core.lora.adapter_file import LoraPair
from core.lora.expert_pairs import put_on_experts, split_pairs
from core.models.json_file import read_object
from core.records import Message
from core.training.batch_generate import answer_batch
from core.training.decode import stop_tokens
from core.training.generate import end_of_turn

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three fruits, separated by commas.",
    "I would like two coffees and one tea, no, make that two teas.",
    "Was ist 7 mal 8?",
)
GREEDY_TOKENS = 24
GREEDY_TOKENS_LAYERED = 6  # each one reads all weights from the disk
_MAX_CONFIG_BYTES = 4 * 2**20
_MOST_PROMPT_TOKENS = 160  # of a template with a very long opening, the end

WeightSource = Callable[[str], Tensor]


@dataclass(frozen=True)
class Probe:
    """One question as tokens."""

    prompt: str
    ids: list[int]


class Runner(Protocol):
    """A model that can be asked."""

    greedy_tokens: int

    def logits(self, sequences: Sequence[list[int]], control: Control) -> list[Tensor]:
        """For each sequence its logits (tokens, vocabulary) in fp32 on the CPU."""
        ...

    def greedy(self, prompts: Sequence[list[int]], stop_ids: frozenset[int], control: Control) -> list[list[int]]:
        """The most likely continuation of each prompt."""
        ...


def make_probes(tokenizer: PreTrainedTokenizerBase) -> list[Probe]:
    """The fixed questions, rendered with the model's chat template."""
    return [Probe(prompt, render_prompt([Message("user", prompt)], tokenizer)[-_MOST_PROMPT_TOKENS:])
            for prompt in PROMPTS]


def probe_stop_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer of the model in `folder`."""
    path = folder / "generation_config.json"
    listed = read_object(path, _MAX_CONFIG_BYTES).get("eos_token_id") if path.exists() else None
    return stop_tokens(listed, tokenizer, end_of_turn(tokenizer))


class WholeRunner:
    """A model that is in memory."""

    greedy_tokens = GREEDY_TOKENS

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @torch.inference_mode()
    def logits(self, sequences: Sequence[list[int]], control: Control) -> list[Tensor]:
        """See Runner."""
        found = []
        for ids in sequences:
            control.check()
            output = self._model(input_ids=torch.tensor([ids], device=self._model.device), use_cache=False)
            found.append(output.logits[0].float().cpu())
        return found

    def greedy(self, prompts: Sequence[list[int]], stop_ids: frozenset[int], control: Control) -> list[list[int]]:
        """See Runner."""
        answers = dict(answer_batch(self._model, prompts, stop_ids, self.greedy_tokens, control))
        return [answers[number] for number in range(len(prompts))]


class LayeredRunner:
    """A model whose decoder layers are read from the disk one after the other, each time they are needed.

    Args:
        model: a skeleton, parameters on the meta device.
        weights: gives a parameter by its name, in the type to compute in.
        pairs: an adapter beside the layers, by module name.

    Raises:
        ModelError: the model has no list of decoder layers.
    """

    greedy_tokens = GREEDY_TOKENS_LAYERED

    def __init__(self, model: PreTrainedModel, weights: WeightSource, pairs: dict[str, LoraPair]) -> None:
        self._model = model
        self._weights = weights
        prefix, layers = decoder_layers(model)
        for name, parameter in list(model.named_parameters(remove_duplicate=True)):
            if not name.startswith(f"{prefix}."):
                set_everywhere(model, parameter, weights(name))
        for number, layer in enumerate(layers):
            self._stream(f"{prefix}.{number}", layer)
        modules, experts = split_pairs(pairs)
        put_on_experts(model, experts)
        for name, pair in modules.items():
            model.get_submodule(name).register_forward_hook(_adapter_hook(pair))

    def _stream(self, prefix: str, layer: nn.Module) -> None:
        owned = [(module, key, f"{prefix}.{name}.{key}" if name else f"{prefix}.{key}", parameter)
                 for name, module in layer.named_modules() for key, parameter in module.named_parameters(recurse=False)]

        def fill(_module: nn.Module, _inputs: Any) -> None:
            for module, key, full_name, _ in owned:
                module._parameters[key] = nn.Parameter(self._weights(full_name), requires_grad=False)

        def empty(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            for module, key, _, parameter in owned:
                module._parameters[key] = parameter

        layer.register_forward_pre_hook(fill)
        layer.register_forward_hook(empty)

    @torch.inference_mode()
    def logits(self, sequences: Sequence[list[int]], control: Control) -> list[Tensor]:
        """See Runner. All sequences pass a layer together, so that it is read once; what is padded on the
        right is never seen by the positions before it."""
        control.check()
        longest = max(len(ids) for ids in sequences)
        batch = torch.tensor([ids + [ids[-1]] * (longest - len(ids)) for ids in sequences])
        logits = self._model(input_ids=batch, use_cache=False).logits.float()
        return [logits[row, :len(ids)].clone() for row, ids in enumerate(sequences)]

    def greedy(self, prompts: Sequence[list[int]], stop_ids: frozenset[int], control: Control) -> list[list[int]]:
        """See Runner."""
        answers: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        for _ in range(self.greedy_tokens):
            logits = self.logits([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)], control)
            for row, (answer, last) in enumerate(zip(answers, logits, strict=True)):
                token = int(last[-1].argmax())
                ended[row] = ended[row] or token in stop_ids
                if not ended[row]:
                    answer.append(token)
            if all(ended):
                break
        return answers


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers, which holds most of the model, and its name.

    Raises:
        ModelError: there is none.
    """
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for _, module in lists]
    if not lists or max(sizes) == 0:
        raise ModelError("This kind of model has no list of decoder layers that could be run one by one.")
    return lists[sizes.index(max(sizes))]


def set_everywhere(model: nn.Module, old: nn.Parameter, value: Tensor) -> None:
    """Replace a parameter in every module that shares it."""
    new = nn.Parameter(value, requires_grad=False)
    for module in model.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is old:
                module._parameters[key] = new


def _adapter_hook(pair: LoraPair) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def add_update(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        lora_a, lora_b = pair.lora_a.to(output.dtype), pair.lora_b.to(output.dtype)
        update = pair.scale * F.linear(F.linear(inputs[0], lora_a), lora_b)
        if pair.magnitude is None:
            return output + update
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
        rows = weight.T if isinstance(module, Conv1D) else weight
        length = (rows + pair.scale * (lora_b @ lora_a)).norm(dim=1)
        share = pair.magnitude.to(output.dtype) / length
        return share * (output + update) if bias is None else share * (output - bias + update) + bias

    return add_update
