"""Single rows as the model gets them: the job behind the rows of the Data page."""

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from core.config import DataConfig
from core.control import Control
from core.data.formats import Conversation
from core.data.outline import RowIndex
from core.data.prepare import read_batches
from core.data.scan_key import Warm, data_key
from core.data.template import RowEncoder, TokenisedRow
from core.events import Event, Note, Result, RowsPrepared
from core.jobs import PreviewRows
from core.models.kept_tokenizer import kept_tokenizer
from core.models.library import resolve
from core.records import Message, RowPreview, Token

PREVIEW_BYTES = 16 * 2**20  # of the files; the rows after them are not searched, nor shown until a scan has found them
FIRST_BYTES = 2**20  # of larger files, enough to begin with


def preview_rows(job: PreviewRows, control: Control, warm: Warm | None = None) -> Iterator[Event]:
    """Rows as conversations and as tokens, with what is learned in them -> RowsPrepared, Result.

    Rows that can not be used are left out here; the scan names them.

    Raises:
        ModelError: no such model, or one without a usable tokenizer.
        DataError: a file can not be read at all.
    """
    warm = {} if warm is None else warm
    data = job.config.data
    tokenizer = kept_tokenizer(resolve(job.config.model.path))
    key = data_key(job.config)
    whole = bool(job.search.strip()) or sum(max(size, 0) for _, size, _ in key[0]) <= PREVIEW_BYTES
    limit = PREVIEW_BYTES if whole else min(FIRST_BYTES, PREVIEW_BYTES)
    if warm.get("data.rows", (None,))[0] != key or warm["data.rows"][1].limit < limit:
        table = yield from _read_table(_Table(tokenizer, data, limit), data, control)
        warm["data.rows"] = (key, table)
    table: _Table = warm["data.rows"][1]
    signatures, offsets = warm.get("data.index") or (None, None)
    if table.shortened and not job.search.strip() and offsets and signatures == key[0]:
        rows = RowIndex(offsets)
        numbers = range(len(rows))[max(0, job.first):max(0, job.first) + max(0, job.count)]
        yield RowsPrepared(len(rows), tuple(table.preview_of(number, rows.conversation(number)) for number in numbers))
        yield Result({"total_rows": len(rows)})
        return
    if table.shortened:
        yield Note(f"The preview shows the rows in the first {table.limit // 2**20} MB.")
    numbers = table.matching(job.search)
    chosen = numbers[max(0, job.first):max(0, job.first) + max(0, job.count)]
    yield RowsPrepared(len(numbers), tuple(table.preview(number) for number in chosen))
    yield Result({"total_rows": len(numbers)})


class _Table:
    """The conversations of the files; a long text stands for several rows, its pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataConfig, limit: int) -> None:
        self.limit = limit  # bytes of the files to read
        self.shortened = False
        self._encoder = RowEncoder(tokenizer, data.train_on, data.max_length)
        self._train_on = data.train_on
        self._special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._tokenizer = tokenizer
        self._conversations: list[Conversation] = []
        self._first_rows: list[int] = []  # the number of each conversation's first row
        self._rows = 0

    def add(self, conversations: Sequence[Conversation]) -> None:
        """Append conversations; texts are tokenised to count their pieces."""
        pieces: dict[int, int] = {}
        texts = [conversation for conversation in conversations if conversation.is_text]
        for item in self._encoder.encode(texts):
            pieces[id(item.conversation)] = pieces.get(id(item.conversation), 0) + 1
        for conversation in conversations:
            self._conversations.append(conversation)
            self._first_rows.append(self._rows)
            self._rows += pieces.get(id(conversation), 0) if conversation.is_text else 1

    def matching(self, search: str) -> Sequence[int]:
        """The numbers of the rows that hold `search`, in any letter case; all of them for ""."""
        needle = search.strip().casefold()
        if not needle:
            return range(self._rows)
        numbers: list[int] = []
        for first, conversation in zip(self._first_rows, self._conversations, strict=True):
            if not any(needle in message.content.casefold() for message in conversation.messages):
                continue
            if conversation.is_text:
                pieces = self._encoder.encode([conversation])
                numbers += [first + place for place, item in enumerate(pieces) if needle in _text_of(item).casefold()]
            else:
                numbers.append(first)
        return numbers

    def preview(self, number: int) -> RowPreview:
        """One row for showing."""
        position = bisect_right(self._first_rows, number) - 1
        return self.preview_of(number, self._conversations[position], number - self._first_rows[position])

    def preview_of(self, number: int, conversation: Conversation, piece: int = 0) -> RowPreview:
        """A row, of a text one piece, for showing. A row that the chat template refuses has no tokens."""
        items = self._encoder.encode([conversation], report=lambda error: None)
        if not items:
            return RowPreview(number, conversation.messages, (), cut=False)
        item = items[piece]
        messages = conversation.messages
        if conversation.is_text:
            messages = (Message("text", _text_of(item), trained=True),)
        elif self._train_on == "all":
            messages = tuple(replace(message, trained=True) for message in messages)
        return RowPreview(number, messages, tuple(self._tokens(item)), item.row.cut)

    def _tokens(self, item: TokenisedRow) -> Iterator[Token]:
        """Each token's text as it stands in the row; of several tokens in one character the first has it."""
        end = 0
        for identity, trained, (first, last) in zip(
                item.row.input_ids.tolist(), item.row.supervised.tolist(), item.offsets.tolist(), strict=True):
            special = identity in self._special
            text = item.text[max(first, end):last]
            if special and not text:
                text = str(self._tokenizer.convert_ids_to_tokens(identity))
            end = max(end, last)
            yield Token(text, trained, special)


def _text_of(item: TokenisedRow) -> str:
    return item.text[item.offsets[0, 0]:item.offsets[-1, 1]]


def _read_table(table: _Table, data: DataConfig, control: Control) -> Generator[Event, None, _Table]:
    for conversations, progress in read_batches(data, control, report=lambda error: None):
        yield progress
        table.add(conversations)
        if progress.done > table.limit and progress.done < progress.total:
            table.shortened = True
            break
    return table
