"""Conversations become token ids, and for each token whether it is learned.

A row is rendered whole and tokenised once, without the tokenizer adding anything, so that there is
one begin-of-text token at most. The tokens' offsets decide what is learned: a token counts only if
it lies fully inside what the assistant says. A token that straddles the seam between prompt and
answer (a template that ends its prompt with a space, which the tokenizer joins to the next word) is
not learned, because the prompt gives a part of it. End tokens are learned by their place, never
left out by their id, so a pad token with the same id does no harm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.data.chat import ChatTemplate, Rendered, begin_token
from core.data.formats import Conversation
from core.errors import DataError, ModelError
from core.events import Message

TrainOn = Literal["answers", "all"]


@dataclass(frozen=True, eq=False, slots=True)
class EncodedRow:
    """A row as the model gets it.

    Args:
        index: of the row in the dataset, from 0; pieces of one text share it.
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
    """An encoded row with its text and the place of every token in it: (n, 2) characters."""

    row: EncodedRow
    text: str
    offsets: NDArray[np.int32]


class RowEncoder:
    """Encodes conversations for one model and one set of data options."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise ModelError("The tokenizer of this model has no fast version, which is needed to find the answers.",
                             "Choose a model with a tokenizer.json.")
        self.template = ChatTemplate(tokenizer)
        self._tokenizer = tokenizer
        self._train_on = train_on
        self._max_length = max_length
        self._begin = begin_token(tokenizer)

    def encode(self, conversations: Sequence[Conversation], first_index: int = 0) -> list[list[TokenisedRow]]:
        """Each conversation as its rows: one for a chat, one or more pieces for a text.

        Raises:
            DataError: with file and line, where the chat template refuses a conversation.
        """
        texts = [self._render(conversation) for conversation in conversations]
        if not texts:
            return []
        batch = self._tokenizer([rendered.text for rendered in texts], add_special_tokens=False,
                                return_offsets_mapping=True, return_attention_mask=False, return_token_type_ids=False,
                                verbose=False)
        rows = []
        for number, (conversation, rendered, ids, offsets) in enumerate(
                zip(conversations, texts, batch["input_ids"], batch["offset_mapping"], strict=True)):  # type: ignore[arg-type]
            row = self._assemble(conversation, rendered, np.asarray(ids, np.int32),
                                 np.asarray(offsets, np.int32).reshape(-1, 2), first_index + number)
            rows.append(row)
        return rows

    def _render(self, conversation: Conversation) -> Rendered:
        if not conversation.is_text:
            return self.template.render(conversation)
        text = conversation.messages[0].content
        if not conversation.continues:
            text += self.template.end_token
        return Rendered(text, ((0, len(text)),))

    def _assemble(self, conversation: Conversation, rendered: Rendered, ids: NDArray[np.int32],
                  offsets: NDArray[np.int32], index: int) -> list[TokenisedRow]:
        if conversation.is_text:
            return self._pieces(rendered.text, ids, offsets, index)
        supervised = self._supervised(rendered, offsets)
        limit = self._max_length
        row = EncodedRow(index, ids[:limit].copy(), supervised[:limit].copy(), len(ids) > limit, len(ids))
        return [TokenisedRow(row, rendered.text, offsets[:limit])]

    def _supervised(self, rendered: Rendered, offsets: NDArray[np.int32]) -> NDArray[np.bool_]:
        starts, ends = offsets[:, 0], offsets[:, 1]
        if self._train_on == "all":
            supervised = np.ones(len(offsets), np.bool_)
        else:
            supervised = np.zeros(len(offsets), np.bool_)
            for first, last in rendered.spans:
                # an empty token (a sentencepiece's lone space mark) at the very seam belongs to the prompt
                supervised |= (starts >= first) & (ends <= last) & ((ends > starts) | (starts > first))
        supervised[:1] = False
        return supervised

    def _pieces(self, text: str, ids: NDArray[np.int32], offsets: NDArray[np.int32], index: int) -> list[TokenisedRow]:
        """A text longer than the limit is cut in pieces, each begun as the tokenizer begins a text."""
        begin = np.asarray([self._tokenizer.bos_token_id] if self._begin else [], np.int32)
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
            pieces.append(TokenisedRow(EncodedRow(index, piece, supervised, False, len(piece)), text, places))
        return pieces


def encode(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn,
           max_length: int) -> list[EncodedRow]:
    """One conversation as rows: one for a chat, one or more pieces of at most `max_length` tokens for a text.

    Raises:
        DataError: with file and line.
    """
    return [item.row for item in RowEncoder(tokenizer, train_on, max_length).encode([conversation])[0]]


def render_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids after which the assistant answers `messages`, as the training saw them.

    Raises:
        DataError: no messages, or the chat template refuses them.
    """
    if not messages:
        raise DataError("There is no message to answer.", "Write a message first.")
    text = ChatTemplate(tokenizer).prompt(messages)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
