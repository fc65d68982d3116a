"""What a tokenizer is: a table from ids to bytes, and a way to spell any text with it."""

from __future__ import annotations

import abc
import hashlib
import json
import os
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from transformer.text import spelling

END = "<|endoftext|>"


class Tokenizer(abc.ABC):
    """Text to ids and back. Immutable; `decode(encode(text)) == text`.

    Attributes:
      kind: the name of the scheme: "bytes", "characters" or "bpe".
      spellings: the bytes that each id stands for. A character may be spread over several ids.
      end: the id that closes a document, spelt `<|endoftext|>` unless a loaded file says otherwise; None if there is
        none. No text encodes to it.
    """

    kind: ClassVar[str]
    errors: ClassVar[str] = spelling.SURROGATES  # how bytes that are not UTF-8 are read
    spellings: tuple[bytes, ...]
    end: int | None

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
    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`: `[T]` int32, without the end id.

        Raises:
          ValueError: if `text` is no string, or holds a character that this tokenizer cannot spell.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, in order, on all cores where the kind can."""
        return [self.encode(text) for text in spelling.check_texts(texts)]

    def spell(self, ids: Sequence[int] | np.ndarray, *, keep_end: bool = False) -> bytes:
        """The bytes that ids stand for; arguments and errors as in `decode`."""
        values = spelling.check_ids(ids, self.size)
        if self.end is not None and not keep_end:
            values = [value for value in values if value != self.end]
        return b"".join(map(self.spellings.__getitem__, values))

    def decode(self, ids: Sequence[int] | np.ndarray, *, keep_end: bool = False) -> str:
        """The text that ids stand for; bytes that are not UTF-8 become U+FFFD.

        Args:
          ids: `[T]` integers: a list, or a NumPy or JAX array.
          keep_end: spell out the end id instead of leaving it out.

        Raises:
          ValueError: if `ids` is not one-dimensional, or an id is no integer in `[0, size)`.
        """
        return self.spell(ids, keep_end=keep_end).decode("utf-8", self.errors)

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

    @abc.abstractmethod
    def _table(self) -> object:
        """What determines the ids, as JSON values."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, end={self.end})"
