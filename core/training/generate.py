"""Answers of base and tuned model side by side, from one model in memory, token by token."""

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.control import Control
from core.data.formats import Conversation
from core.data.template import encode, render_prompt
from core.errors import Cancelled, CoreError, DataError
from core.events import Event, GenerationDone, Message, Progress, Result, TokenGenerated, Warned
from core.jobs import Generate
from core.lora.adapter_file import CONFIG_NAME, WEIGHTS_NAME
from core.lora.attach import load_adapter
from core.lora.inject import adapter_disabled, remove
from core.models.inspect import fingerprint
from core.models.library import resolve
from core.models.load import load_model, load_tokenizer, resolve_device, resolve_dtype
from core.models.safety import check_files
from core.training.decode import Answer, Sampling, TextStream, stop_tokens

Column = Literal["base", "tuned"]
COLUMNS: tuple[Column, ...] = ("base", "tuned")
_WARM_NAME = "chat"
_PROBE = (Message("user", "Hello"), Message("assistant", "Hello", trained=True))


@dataclass
class LoadedModel:
    """A model in memory, with or without an adapter on it.

    `trained_on` is the fingerprint of the base that the adapter was trained on, "" where it says none.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    fingerprint: str
    trained_on: str = ""


@dataclass
class WarmModels:
    """Keeps the model of the last question, so that the next one starts at once.

    Another adapter goes onto the same base without loading it again; files that changed on the
    disk are loaded again.
    """

    _base_key: tuple[object, ...] = ()
    _adapter_key: tuple[object, ...] = ()
    _loaded: LoadedModel | None = field(default=None)

    def get(self, path: Path, adapter: Path | None, device: torch.device, dtype: torch.dtype) -> LoadedModel:
        """The model of `path` with `adapter` on it (None: without any).

        Raises:
            CoreError: the model or the adapter can not be loaded, or do not belong together.
        """
        base_key = (str(path), str(device), str(dtype), _stamp(path, "*.safetensors"), _stamp(path, "*.json"))
        if self._loaded is None or self._base_key != base_key:
            self.clear()
            model = load_model(path, device, dtype)
            tokenizer = load_tokenizer(path)
            listed = model.generation_config.eos_token_id if model.generation_config is not None else None
            stop_ids = stop_tokens(listed, tokenizer, end_of_turn(tokenizer))
            self._loaded = LoadedModel(model, tokenizer, stop_ids, fingerprint(path, check_files(path)))
            self._base_key = base_key
        self._put_on(adapter, self._loaded)
        return self._loaded

    def _put_on(self, adapter: Path | None, loaded: LoadedModel) -> None:
        key = (str(adapter), _stamp(adapter, CONFIG_NAME), _stamp(adapter, WEIGHTS_NAME)) if adapter else ()
        if key == self._adapter_key:
            return
        remove(loaded.model)
        self._adapter_key, loaded.trained_on = (), ""
        if adapter is not None:
            loaded.trained_on = str(load_adapter(adapter, loaded.model).origin.get("base_fingerprint") or "")
            self._adapter_key = key

    def clear(self) -> None:
        """Free the memory."""
        self._loaded, self._base_key, self._adapter_key = None, (), ()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _stamp(folder: Path, pattern: str) -> tuple[object, ...]:
    """Names, sizes and times of files, which change when the files do."""
    stats = [(path.name, path.stat()) for path in sorted(folder.glob(pattern))]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def generate(job: Generate, control: Control, warm: dict[str, object] | None = None) -> Iterator[Event]:
    """Answer each column's conversation; the columns stream at the same time, one token each in turn.

    Args:
        job: what is asked. `adapter` is an adapter folder or a run folder.
        control: a stop ends the answers within one token; what was said so far stays.
        warm: keeps the model between questions; emptying it frees the memory.

    Raises:
        CoreError: an unknown column, no adapter for "tuned", a prompt longer than the context, or
            models that can not be loaded.
    """
    columns = _columns(job)
    models = cast("WarmModels", warm.setdefault(_WARM_NAME, WarmModels())) if warm is not None else WarmModels()
    yield Progress("Loading the model", 0, 0)
    device = resolve_device(job.device)
    adapter = adapter_folder(job.adapter) if job.adapter is not None else None
    loaded = models.get(resolve(job.model), adapter, device, resolve_dtype(job.dtype, device))
    control.check()
    if loaded.trained_on not in ("", loaded.fingerprint):
        yield Warned("The base model's files are not those that this adapter was trained on.",
                     "The tuned answers may be wrong; choose the right base model, or train again.")
    streams = [_Stream(column, job, loaded) for column in columns]
    with contextlib.suppress(Cancelled):  # a stop is the usual way to end a long answer
        waiting = list(streams)
        while waiting:
            for stream in list(waiting):
                control.check()
                yield from stream.advance(control)
                if stream.answer.ended:
                    waiting.remove(stream)
                    yield from stream.finish()
    for stream in streams:
        if not stream.done:
            yield from stream.finish()
    yield Result({
        "answers": {stream.column: stream.text for stream in streams},
        "tokens": {stream.column: len(stream.answer.tokens) for stream in streams},
        "stopped": control.stop_requested,
    })


def _columns(job: Generate) -> list[Column]:
    unknown = set(job.conversations) - set(COLUMNS)
    if unknown or not job.conversations:
        raise CoreError("There is nothing to answer." if not unknown else f"There is no column {min(unknown)!r}.",
                        "The columns are base and tuned.")
    if "tuned" in job.conversations and job.adapter is None:
        raise CoreError("There is no adapter to answer with.", "Choose a run that has been trained.")
    return [column for column in COLUMNS if column in job.conversations]


def adapter_folder(path: Path) -> Path:
    """The adapter folder that `path` means: itself, or the final adapter of a run folder."""
    if not (path / CONFIG_NAME).exists() and (path / "adapter" / CONFIG_NAME).exists():
        return path / "adapter"
    return path


class _Stream:
    """One column's answer and its text."""

    def __init__(self, column: Column, job: Generate, loaded: LoadedModel) -> None:
        self.column: Column = column
        self.text = ""
        self.done = False
        self._model = loaded.model
        self._seconds = 0.0
        messages = [Message(role, content) for role, content in job.conversations[column]]
        prompt = render_prompt(messages, loaded.tokenizer)
        room = _room(loaded.model, len(prompt))
        sampling = Sampling(job.temperature, job.top_p, job.seed)
        self.answer = Answer(loaded.model, prompt, sampling, loaded.stop_ids, min(job.max_new_tokens, room))
        self._text_stream = TextStream(loaded.tokenizer)

    def advance(self, control: Control) -> Iterator[Event]:
        """One token further."""
        start = time.perf_counter()
        with adapter_disabled(self._model) if self.column == "base" else contextlib.nullcontext():
            token = self.answer.step(control)
        self._seconds += time.perf_counter() - start
        if token is not None:
            yield from self._say(self._text_stream.push(token))

    def finish(self) -> Iterator[Event]:
        """The rest of the text and the end."""
        self.done = True
        yield from self._say(self._text_stream.finish())
        stopped = self.answer.at_limit or not self.answer.ended
        yield GenerationDone(self.column, len(self.answer.tokens), self._seconds, stopped)

    def _say(self, piece: str) -> Iterator[Event]:
        if piece:
            self.text += piece
            yield TokenGenerated(self.column, piece)


def _room(model: PreTrainedModel, prompt_tokens: int) -> int:
    """How many tokens fit behind the prompt."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return 2**31
    if prompt_tokens >= limit:
        raise CoreError(f"The conversation is {prompt_tokens:,} tokens long; this model reads at most {limit:,}.",
                        "Start a new conversation.")
    return limit - prompt_tokens


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token by which an answer ends in the chat template; None where there is none."""
    try:
        row = encode(Conversation(_PROBE, Path("probe"), 1, "probe"), tokenizer, "answers", 4096)[0]
    except DataError:
        return None  # the template can not be used; the prompt will say so
    learned = row.input_ids[row.supervised]
    last = int(learned[-1]) if len(learned) else -1
    return last if last in tokenizer.added_tokens_decoder else None
