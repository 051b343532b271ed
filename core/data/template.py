"""Conversations become token ids, and for each token whether it is learned.

A row is rendered whole and tokenised once, without the tokenizer adding anything, so that there is
one begin-of-text token at most. The tokens' offsets decide what is learned: a token counts only if
it lies fully inside what the assistant says. Where a token would straddle the seam between prompt
and answer (a template that ends its prompt with a space, which the tokenizer joins to the next
word), the row is tokenised in parts, cut at its seams, because that is how the model meets it when
it answers; with tokenizers that put a space before every text, which can not be cut like this, the
straddling token is not learned. End tokens are learned by their place, never left out by their id,
so a pad token with the same id does no harm. Texts are learned whole: what is longer than the limit
is cut in pieces, and the end token stands where the document ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from core.data.chat import ChatTemplate, Rendered, begin_token
from core.data.formats import Conversation
from core.data.source import Report, stop_at
from core.errors import DataError, ModelError
from core.records import Message

TrainOn = Literal["answers", "all"]
CHAT_LIMIT_CHARACTERS = 2_000_000  # of one conversation as text; beyond it tokenising takes seconds


@dataclass(frozen=True, eq=False, slots=True)
class EncodedRow:
    """A row as the model gets it.

    Args:
        index: of the row in the dataset, from 0; the pieces of a text are rows.
        input_ids: (n,) int32.
        supervised: (n,) bool; True: this token is predicted from the ones before it. The first is always False.
        cut: the row was longer than the limit.
        length: tokens before it was cut.
    """

    index: int
    input_ids: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    cut: bool
    length: int

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, eq=False, slots=True)
class TokenisedRow:
    """An encoded row with the conversation and text it comes from, and the place of every token in that text.

    Args:
        offsets: (n, 2) int32, characters; the row's tokens only, without those cut off.
    """

    row: EncodedRow
    conversation: Conversation
    text: str
    offsets: NDArray[np.int32]


class RowEncoder:
    """Encodes conversations for one model and one set of data options."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise ModelError("The tokenizer of this model has no fast version, which is needed to find the answers.",
                             "Choose a model with a tokenizer.json.")
        self.template = ChatTemplate(tokenizer)
        self._backend: Tokenizer = tokenizer.backend_tokenizer  # type: ignore[attr-defined] -- fast ones have it
        self._backend.no_truncation()  # a tokenizer.json may ask for either
        self._backend.no_padding()
        self._can_split = _splits_cleanly(self._backend)
        self._begin_id = tokenizer.bos_token_id
        self._train_on = train_on
        self._max_length = max_length
        self._begin = begin_token(tokenizer)

    def encode(self, conversations: Sequence[Conversation], first_index: int = 0,
               report: Report = stop_at) -> list[TokenisedRow]:
        """The rows of the conversations in their order: one for a chat, one or more pieces for a text.

        Args:
            conversations: tokenised together, on all cores.
            first_index: of the first row; the others count on.
            report: gets what the chat template refuses; if it returns, the conversation is left out.
        """
        accepted = self._rendered(conversations, report)
        encodings = self._backend.encode_batch([rendered.text for _, rendered in accepted], add_special_tokens=False)
        rows: list[TokenisedRow] = []
        for (conversation, rendered), encoding in zip(accepted, encodings, strict=True):
            ids, offsets = _arrays(encoding)
            index = first_index + len(rows)
            if conversation.is_text:
                rows += self._pieces(conversation, rendered.text, ids, offsets, index)
            else:
                rows.append(self._chat(conversation, rendered, ids, offsets, index))
        return rows

    def _rendered(self, conversations: Sequence[Conversation],
                  report: Report) -> list[tuple[Conversation, Rendered]]:
        accepted = []
        for conversation in conversations:
            try:
                accepted.append((conversation, self._render(conversation)))
            except DataError as error:
                report(error)
        return accepted

    def _render(self, conversation: Conversation) -> Rendered:
        if not conversation.is_text:
            rendered = self.template.render(conversation, spans=self._train_on == "answers")
            if len(rendered.text) > CHAT_LIMIT_CHARACTERS:
                raise DataError(f"{conversation.place}: this conversation has {len(rendered.text):,} characters.",
                                f"Cut it into shorter ones; {CHAT_LIMIT_CHARACTERS:,} is the limit.")
            return rendered
        text = conversation.messages[0].content
        if not conversation.continues:
            text += self.template.end_token
        return Rendered(text, ((0, len(text)),))

    def _chat(self, conversation: Conversation, rendered: Rendered, ids: NDArray[np.int32],
              offsets: NDArray[np.int32], index: int) -> TokenisedRow:
        starts, ends = offsets[:, 0], offsets[:, 1]
        if self._can_split and any(((starts < first) & (ends > first)).any() for first, _ in rendered.spans):
            ids, offsets = self._split_at_seams(rendered)
        supervised, limit = self._supervised(rendered, offsets), self._max_length
        row = EncodedRow(index, ids[:limit].copy(), supervised[:limit].copy(), len(ids) > limit, len(ids))
        return TokenisedRow(row, conversation, rendered.text, offsets[:limit])

    def _split_at_seams(self, rendered: Rendered) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Tokenise prompt and answer apart, as they are when the model answers."""
        cuts = [0, *(first for first, _ in rendered.spans), len(rendered.text)]
        parts = []
        for first, last in pairwise(cuts):
            ids, offsets = _arrays(self._backend.encode(rendered.text[first:last], add_special_tokens=False))
            parts.append((ids, offsets + np.int32(first)))
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([offsets for _, offsets in parts])

    def _supervised(self, rendered: Rendered, offsets: NDArray[np.int32]) -> NDArray[np.bool_]:
        starts, ends = offsets[:, 0], offsets[:, 1]
        if self._train_on == "all":
            supervised = np.ones(len(offsets), np.bool_)
        else:
            supervised = np.zeros(len(offsets), np.bool_)
            for first, last in rendered.spans:
                # an empty token (a lone space mark of a sentencepiece) at the very seam belongs to the prompt
                supervised |= (starts >= first) & (ends <= last) & ((ends > starts) | (starts > first))
        supervised[:1] = False
        return supervised

    def _pieces(self, conversation: Conversation, text: str, ids: NDArray[np.int32], offsets: NDArray[np.int32],
                index: int) -> list[TokenisedRow]:
        """A text longer than the limit is cut in pieces, each begun as the tokenizer begins a text."""
        begin = np.asarray([self._begin_id] if self._begin else [], np.int32)
        room = self._max_length - len(begin)
        cuts = list(range(0, len(ids), room))
        if len(cuts) > 1 and len(ids) - cuts[-1] < 2 and not len(begin):
            cuts[-1] -= 1  # a last piece of one token would teach nothing
        pieces = []
        for first, last in zip(cuts, [*cuts[1:], len(ids)], strict=True):
            piece = np.concatenate([begin, ids[first:last]])
            places = np.concatenate([np.full((len(begin), 2), offsets[first, 0], np.int32), offsets[first:last]])
            supervised = np.ones(len(piece), np.bool_)
            supervised[:1] = False
            row = EncodedRow(index + len(pieces), piece, supervised, False, len(piece))
            pieces.append(TokenisedRow(row, conversation, text, places))
        return pieces


def _arrays(encoding: Encoding) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Token ids (n,) and their places (n, 2) in the text."""
    ids = np.array(encoding.ids, np.int32)
    return ids, np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * len(ids)).reshape(-1, 2)


def _splits_cleanly(backend: Tokenizer) -> bool:
    """False for tokenizers that put a space before every text, which would get into the middle of a row."""
    tokens = backend.encode("a", add_special_tokens=False).tokens
    return bool(tokens) and tokens[0] == "a"


def encode(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn,
           max_length: int) -> list[EncodedRow]:
    """One conversation as rows: one for a chat, one or more pieces of at most `max_length` tokens for a text.

    Raises:
        DataError: with file and line.
    """
    return [item.row for item in RowEncoder(tokenizer, train_on, max_length).encode([conversation])]


def render_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids after which the assistant answers `messages`, as the training saw them.

    Raises:
        DataError: no messages, or the chat template refuses them.
    """
    if not messages:
        raise DataError("There is no message to answer.", "Write a message first.")
    text = ChatTemplate(tokenizer).prompt(messages)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
