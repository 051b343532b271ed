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

from core.control import Control, Strengths
from core.data.formats import Conversation
from core.data.template import encode, render_prompt
from core.errors import AdapterError, Cancelled, CoreError, DataError
from core.events import Event, GenerationDone, Progress, Result, TokenGenerated, Warned
from core.jobs import AdapterUse, Generate
from core.lora.adapter_file import read_origin
from core.lora.adapter_set import AdapterSet
from core.lora.prefix import prefix_length
from core.lora.tokenizer_files import has_tokenizer
from core.models.inspect import fingerprint
from core.models.library import resolve
from core.models.load import load_model, load_tokenizer, resolve_device, resolve_dtype
from core.models.safety import check_files
from core.records import Message
from core.start import adapter_folder
from core.training.contention import watched_contention
from core.training.decode import Answer, Sampling, TextStream, stop_tokens
from core.training.tuned_base import load_whole_model, quantisation_for, whole_among

Column = Literal["base", "tuned"]
COLUMNS: tuple[Column, ...] = ("base", "tuned")
_WARM_NAME = "chat"
_PROBE = (Message("user", "Hello"), Message("assistant", "Hello", trained=True))
_MOST_ADAPTERS = 8  # that stay in memory without being used


@dataclass
class LoadedModel:
    """A model in memory and the adapters beside it; `names` are those of the present question, in its order."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    fingerprint: str
    adapters: AdapterSet
    names: tuple[str, ...] = ()
    tuned_tokenizer: PreTrainedTokenizerBase | None = None  # of an adapter that taught the model new tokens
    whole: Path | None = None  # a fine-tuned model that answers instead of base + adapters
    tuned: PreTrainedModel | None = None

    def use(self, strengths: tuple[float, ...]) -> None:
        """Give the question's adapters these strengths, from the next token on."""
        if self.whole is not None:
            return  # its change is in its weights
        if len(strengths) != len(self.names):
            raise AdapterError(f"There are {len(self.names)} adapters, but {len(strengths)} strengths were given.")
        self.adapters.use(dict(zip(self.names, strengths, strict=True)))

    def strangers(self) -> list[Path]:
        """The question's adapters that say they were trained on another base."""
        origins = {file.path: file.origin for file in (self.adapters.file(name) for name in self.names)}
        if self.whole is not None:
            origins = {self.whole: read_origin(self.whole)}
        return [path for path, origin in origins.items()
                if origin.get("base_fingerprint") not in (None, "", self.fingerprint)]


@dataclass
class WarmModels:
    """Keeps the model of the last question, so that the next one starts at once.

    Another adapter goes onto the same base without loading it again, and one that was used before is there
    at once; files that changed on the disk are loaded again.
    """

    _base_key: tuple[object, ...] = ()
    _whole_key: str = ""
    _loaded: LoadedModel | None = field(default=None)

    def get(self, path: Path, uses: tuple[AdapterUse, ...], device: torch.device, dtype: torch.dtype) -> LoadedModel:
        """The model of `path` with these adapters beside it, at their strengths.

        Raises:
            CoreError: the model or the adapter can not be loaded, or do not belong together.
        """
        folders = [adapter_folder(use.path) for use in uses]
        whole = whole_among(folders)
        quantisation = quantisation_for(folders) if whole is None else None
        dtype = quantisation.computed_in if quantisation is not None else dtype
        base_key = (str(path), str(device), str(dtype), quantisation, _stamp(path, "*.safetensors"),
                    _stamp(path, "*.json"))
        if self._loaded is None or self._base_key != base_key:
            self.clear()
            model = load_model(path, device, dtype, quantisation)
            tokenizer = load_tokenizer(path)
            listed = model.generation_config.eos_token_id if model.generation_config is not None else None
            stop_ids = stop_tokens(listed, tokenizer, end_of_turn(tokenizer))
            self._loaded = LoadedModel(model, tokenizer, stop_ids, fingerprint(path, check_files(path)),
                                       AdapterSet(model))
            self._base_key = base_key
        _put_on(uses if whole is None else (), self._loaded)
        self._take_whole(whole, path, self._loaded)
        return self._loaded

    def _take_whole(self, whole: Path | None, base: Path, loaded: LoadedModel) -> None:
        """A second model in memory, where the tuned one is a whole one."""
        loaded.whole = whole
        key = _version(whole) if whole is not None else ""
        if key == self._whole_key:
            return
        self._whole_key, loaded.tuned = "", None
        if whole is not None:
            loaded.tuned = load_whole_model(whole, base, loaded.model.device, loaded.model.dtype)
            self._whole_key = key

    def clear(self) -> None:
        """Free the memory."""
        self._loaded, self._base_key, self._whole_key = None, (), ""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _put_on(uses: tuple[AdapterUse, ...], loaded: LoadedModel) -> None:
    """Load what is not in memory yet, forget the oldest of what is not used, and set the strengths."""
    folders = [adapter_folder(use.path) for use in uses]
    names = tuple(_version(folder) for folder in folders)
    if len(set(names)) < len(names):
        raise AdapterError("The same adapter is named twice.", "Name it once, with the sum of the strengths.")
    adapters = loaded.adapters
    old = [name for name in adapters.names if name not in names]
    loaded.names = ()
    for name in old[:max(0, len(old) + len(names) - _MOST_ADAPTERS)]:
        adapters.drop(name)
    for name, folder in zip(names, folders, strict=True):
        if name not in adapters.names:
            adapters.load(name, folder)
    loaded.names = names
    taught = [folder for folder in folders if has_tokenizer(folder)]
    loaded.tuned_tokenizer = load_tokenizer(taught[0]) if taught else None
    loaded.use(tuple(use.strength for use in uses))


def _version(folder: Path) -> str:
    """A name for exactly these files of an adapter."""
    return repr((str(folder), _stamp(folder, "*.json"), _stamp(folder, "*.safetensors"), _stamp(folder, "*/*.json"),
                 _stamp(folder, "*/*.safetensors")))


def _stamp(folder: Path, pattern: str) -> tuple[object, ...]:
    """Names, sizes and times of files, which change when the files do."""
    stats = [(path.name, path.stat()) for path in sorted(folder.glob(pattern))]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def generate(job: Generate, control: Control, warm: dict[str, object] | None = None) -> Iterator[Event]:
    """Answer each column's conversation; the columns stream at the same time, one token each in turn.

    Args:
        job: what is asked. Its adapters are adapter folders or run folders.
        control: a stop ends the answers within one token; what was said so far stays. Strengths act on
            the next token; what was read and said before stays as it was understood then.
        warm: keeps the model between questions; emptying it frees the memory.

    Raises:
        CoreError: an unknown column, no adapter for "tuned", a prompt longer than the context, or
            models that can not be loaded.
    """
    columns = _columns(job)
    models = cast("WarmModels", warm.setdefault(_WARM_NAME, WarmModels())) if warm is not None else WarmModels()
    yield Progress("Loading the model", 0, 0)
    device = resolve_device(job.device)
    loaded = models.get(resolve(job.model), job.uses, device, resolve_dtype(job.dtype, device))
    control.check()
    for folder in loaded.strangers():
        yield Warned(f"The base model's files are not those that the adapter in {folder} was trained on.",
                     "The tuned answers may be wrong; choose the right base model, or train again.")
    streams = [_Stream(column, job, loaded) for column in columns]
    with watched_contention(), contextlib.suppress(Cancelled):  # a stop is the usual way to end a long answer
        waiting = list(streams)
        obeyed: Strengths | None = None
        while waiting:
            if control.strengths is not obeyed:
                obeyed = control.strengths
                loaded.use(obeyed.values if obeyed else ())
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
    if "tuned" in job.conversations and not job.uses:
        raise CoreError("There is no adapter to answer with.", "Choose a run that has been trained.")
    return [column for column in COLUMNS if column in job.conversations]


class _Stream:
    """One column's answer and its text."""

    def __init__(self, column: Column, job: Generate, loaded: LoadedModel) -> None:
        self.column: Column = column
        self.text = ""
        self.done = False
        self._adapters = loaded.adapters
        self._seconds = 0.0
        messages = [Message(role, content) for role, content in job.conversations[column]]
        tokenizer = loaded.tuned_tokenizer if column == "tuned" and loaded.tuned_tokenizer else loaded.tokenizer
        prompt = render_prompt(messages, tokenizer)
        model = loaded.tuned if column == "tuned" and loaded.tuned is not None else loaded.model
        before = prefix_length(model) if column == "tuned" else 0
        room = _room(model, before + len(prompt))
        sampling = Sampling(job.temperature, job.top_p, job.seed)
        self.answer = Answer(model, prompt, sampling, loaded.stop_ids, min(job.max_new_tokens, room))
        self._text_stream = TextStream(tokenizer)

    def advance(self, control: Control) -> Iterator[Event]:
        """One token further."""
        start = time.perf_counter()
        with self._adapters.disabled() if self.column == "base" else contextlib.nullcontext():
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
