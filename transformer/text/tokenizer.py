"""What a tokenizer is: a table from ids to bytes, and a way to spell any text with it."""

from __future__ import annotations

import abc
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from transformer.text import spelling
from transformer.text.pieces import BytePieces, Pieces

END = "<|endoftext|>"


class Tokenizer(abc.ABC):
    """Text to ids and back. Immutable. What is trained here loses nothing: `decode(encode(text)) == text`.

    Tokenizers of published models may lose capitals, accents or spaces, as their models were trained to.

    Attributes:
      kind: the name of the scheme: "bytes", "characters", "bpe", "published", "sentencepiece" or "marian".
      spellings: the bytes that each id stands for. A character may be spread over several ids. Where ids have no bytes
        of their own (kinds "published", "sentencepiece", "marian"): each id's name in the vocabulary.
      end: the id that closes a document, spelt `<|endoftext|>` unless a loaded file says otherwise; None if there is
        none. No text encodes to it.
      begin: the id that opens a text in the published model: BERT's `[CLS]`, Llama's `<s>`; None if there is none.
      pad: the id that fills up a batch in the published model; None if there is none.
      mask: the id that stands for a token to be predicted: BERT's `[MASK]`; None if there is none.
    """

    kind: ClassVar[str]
    errors: ClassVar[str] = spelling.SURROGATES  # how bytes that are not UTF-8 are read
    spellings: tuple[bytes, ...]
    end: int | None
    begin: int | None = None
    pad: int | None = None
    mask: int | None = None

    @property
    def opening(self) -> int | None:
        """The id that opens a document: `begin`, or else `end`; None if there is neither."""
        return self.end if self.begin is None else self.begin

    @property
    def special(self) -> tuple[int, ...]:
        """The ids that stand for no text, rising; `decode` leaves them out."""
        return tuple(sorted(self._hidden))

    @functools.cached_property
    def sentinels(self) -> tuple[int, ...]:
        """The special ids of `<extra_id_0>`, `<extra_id_1>` and so on: what T5 has in the place of what is cut out."""
        ids = {self.spellings[index]: index for index in self._hidden}
        found = (ids.get(f"<extra_id_{number}>".encode()) for number in itertools.count())
        return tuple(itertools.takewhile(lambda index: index is not None, found))

    @property
    def size(self) -> int:
        """How many ids there are: V."""
        return len(self.spellings)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the kind and the table: equal exactly if every text gets the same ids."""
        content = json.dumps([self.kind, self._table()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @abc.abstractmethod
    def encode(self, text: str, *, special: bool = False) -> np.ndarray:
        """Ids of `text`: `[T]` int32.

        Args:
          text: any string.
          special: encode as the published tokenizer does: with the ids it puts around a single text, and with its
            special tokens read where their names stand in the text (`[MASK]`). Otherwise neither: such a name is
            text. Bytes and characters put the opening token in front, as documents begin in training.

        Raises:
          ValueError: if `text` is no string, or holds a character that this tokenizer cannot spell.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, in order, on all cores where the kind can."""
        return [self.encode(text) for text in spelling.check_texts(texts)]

    def spell(self, ids: Sequence[int] | np.ndarray, *, keep_end: bool = False) -> bytes:
        """The bytes that ids stand for; arguments and errors as in `decode`."""
        return b"".join(map(self.spellings.__getitem__, self.shown(ids, keep_end=keep_end)))

    def decode(self, ids: Sequence[int] | np.ndarray, *, keep_end: bool = False) -> str:
        """The text that ids stand for; bytes that are not UTF-8 become U+FFFD.

        Args:
          ids: `[T]` integers: a list, or a NumPy or JAX array.
          keep_end: spell out the end id, and whatever else is no text, instead of leaving it out.

        Raises:
          ValueError: if `ids` is not one-dimensional, or an id is no integer in `[0, size)`.
        """
        return self.spell(ids, keep_end=keep_end).decode("utf-8", self.errors)

    def shown(self, ids: Sequence[int] | np.ndarray, *, keep_end: bool = False) -> list[int]:
        """The ids that `decode` does not leave out; arguments and errors as there."""
        values = spelling.check_ids(ids, self.size)
        hidden = () if keep_end else self._hidden
        return [value for value in values if value not in hidden] if hidden else values

    def pieces(self) -> Pieces:
        """What decodes a stream of ids, those that are `shown`, as they come."""
        return BytePieces(self.spellings, self.errors)

    def with_opening(self) -> Tokenizer:
        """The same ids, and with `special=True` the opening token before a text where the kind can say so in its files.

        A model that was trained here has seen it there; a program that opens the saved tokenizer then puts it there.
        """
        return self

    @abc.abstractmethod
    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the table into `folder`, made if missing; `text.load` reads it back.

        Raises:
          ValueError: if `folder` is a file or holds a tokenizer of another kind.
        """

    @classmethod
    @abc.abstractmethod
    def load(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """Reads what `save` wrote.

        Raises:
          ValueError: if a file is damaged.
        """

    def _opened(self, ids: np.ndarray) -> np.ndarray:
        """Ids behind the opening token, where there is one."""
        return ids if self.opening is None else np.append(np.int32(self.opening), ids)

    @property
    def _hidden(self) -> frozenset[int]:
        """The ids that are no text."""
        return frozenset() if self.end is None else frozenset({self.end})

    @abc.abstractmethod
    def _table(self) -> object:
        """What determines the ids, as JSON values."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, end={self.end})"
