"""One answer, token by token: the KV cache, the choice of the next token, text that never breaks a character."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.control import Control

PREFILL_TOKENS = 256  # of the prompt are read at once, so that a stop is heard in between
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 8  # tokens; more broken text than this is not the start of a character


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the most likely one."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Answer:
    """The answer of one model to one prompt, as it grows.

    Args:
        model: in eval mode.
        prompt: the prompt's tokens, at least one.
        sampling: how tokens are chosen.
        stop_ids: tokens that end the answer; they are not part of it.
        limit: most tokens of the answer.
    """

    def __init__(self, model: PreTrainedModel, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int],
                 limit: int) -> None:
        self._model = model
        self._pending = list(prompt)
        self._cache: object = None
        self._cache_name = cache_argument(model)
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._stop_ids = stop_ids
        self._limit = limit
        self.tokens: list[int] = []
        self.ended = limit <= 0  # by the model's own end or by the limit
        self.at_limit = limit <= 0

    @torch.inference_mode()
    def step(self, control: Control) -> int | None:
        """The next token; None at the end. Raises Cancelled while the prompt is read."""
        if self.ended:
            return None
        logits = None
        while self._pending:
            control.check()
            part, self._pending = self._pending[:PREFILL_TOKENS], self._pending[PREFILL_TOKENS:]
            logits = self._forward(part)
        assert logits is not None
        token = choose(logits, self._sampling, self._generator)
        if token in self._stop_ids:
            self.ended = True
            return None
        self.tokens.append(token)
        self._pending = [token]
        self.at_limit = self.ended = len(self.tokens) >= self._limit
        return token

    def _forward(self, part: list[int]) -> Tensor:
        ids = torch.tensor([part], device=self._model.device)
        output = self._model(input_ids=ids, use_cache=True, logits_to_keep=1, **{self._cache_name: self._cache})
        self._cache = getattr(output, self._cache_name)
        return output.logits[0, -1].float().cpu()  # (vocabulary,)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token from `logits` (vocabulary,): the most likely, or drawn after temperature and top-p.

    Top-p keeps the smallest set of most likely tokens whose probabilities reach p (arXiv 1904.09751).
    """
    if sampling.temperature <= 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # of the tokens that are more likely
        ordered[before >= sampling.top_p] = 0  # the first one always stays
        ordered[0] = torch.clamp(ordered[0], min=torch.finfo(ordered.dtype).tiny)
        probabilities = torch.zeros_like(probabilities).scatter_(0, order, ordered)
    return int(torch.multinomial(probabilities, 1, generator=generator))


class TextStream:
    """Turns tokens into text piece by piece; half a character waits for its other half."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # the context that is decoded again, as spaces depend on what stands before
        self._shown = 0  # tokens whose text was given out

    def push(self, token: int) -> str:
        """The text that `token` completes; may be empty."""
        self._ids.append(token)
        return self._take(final=False)

    def finish(self) -> str:
        """What is left; a character that was never completed is shown as a replacement character."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._start:self._shown])
        text = self._decode(self._ids[self._start:])
        waiting = len(self._ids) - self._shown
        if text.endswith(_BROKEN) and waiting <= _LONGEST_CHARACTER and not final:
            return ""
        piece = text[len(before):]
        if piece:
            self._start, self._shown = self._shown, len(self._ids)
        return piece

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def stop_tokens(listed: object, tokenizer: PreTrainedTokenizerBase, end_of_turn: int | None) -> frozenset[int]:
    """The tokens that end an answer.

    Args:
        listed: `eos_token_id` of the generation config: a number, a list or None.
        tokenizer: its own end token counts too.
        end_of_turn: by which the chat template ends an answer.
    """
    candidates = [end_of_turn, tokenizer.eos_token_id, *(listed if isinstance(listed, list | tuple) else [listed])]
    return frozenset(token for token in candidates if isinstance(token, int))


def cache_argument(model: PreTrainedModel) -> str:
    """What `model.forward` calls its key-value cache; transformers renamed it within version 5."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
