"""Ids turned into text piece by piece, for the two ways of decoding: byte after byte, or all ids together."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from transformer.text import cleaning

REPLACEMENT = "\ufffd"


class Pieces(Protocol):
    """What was fed so far and not yet shown. All that `feed` returned and `flush()` are the text of all ids."""

    def feed(self, ids: Sequence[int]) -> str:
        """The characters that are certain once `ids` follow what came before."""

    def flush(self) -> str:
        """What is left at the end. The stream may then be used anew."""

    def follow(self, ids: Sequence[int]) -> None:
        """What is fed next comes after `ids`, which are shown already."""


class BytePieces:
    """Pieces of a tokenizer whose text is the bytes of its ids, one after the other.

    Args:
      spellings: the bytes of each id.
      errors: how bytes that are not UTF-8 are read.
    """

    def __init__(self, spellings: Sequence[bytes], errors: str):
        self._spellings = spellings
        self._pending = codecs.getincrementaldecoder("utf-8")(errors)

    def feed(self, ids: Sequence[int]) -> str:
        """The characters whose bytes are all there."""
        return self._pending.decode(b"".join(map(self._spellings.__getitem__, ids)))

    def flush(self) -> str:
        """What an unfinished character at the end amounts to: U+FFFD, or nothing."""
        return self._pending.decode(b"", final=True)

    def follow(self, ids: Sequence[int]) -> None:
        """Nothing: each id has the same bytes after any other."""


class TextPieces:
    """Pieces of a tokenizer that decodes ids together: a space may depend on the id before, a byte on those around.

    Text is `decode(shown + new)` without its beginning `decode(shown)`. Of the ids shown, only as many are kept as it
    takes to have a text, so that a long stream costs no more for an id than a short one.

    Args:
      decode: text of a list of ids; it only grows at its end when ids follow, but for what the other arguments say.
      open: ids whose text may change while more of them follow: the bytes of characters outside the vocabulary.
      clean: whether `cleaning.clean` is then applied to the whole.
    """

    def __init__(self, decode: Callable[[list[int]], str], open: Collection[int], clean: bool = False):
        self._decode = decode
        self._open = open
        self._clean = clean
        self._context: list[int] = []
        self._waiting: list[int] = []
        self._text = ""  # certain, but perhaps not yet clean

    def feed(self, ids: Sequence[int]) -> str:
        """The characters that no further id can change."""
        self._waiting.extend(ids)
        count = len(self._waiting)
        while count and self._waiting[count - 1] in self._open:
            count -= 1
        text = self._decode(self._context + self._waiting[:count]) if count else ""
        if count and not text.endswith(REPLACEMENT):  # half a character looks like this
            self._text += text[len(self._decode(self._context)) :]
            self._advance(count)
        if not self._clean:
            return self._cut(len(self._text))
        return cleaning.clean(self._cut(cleaning.settled(self._text)))

    def flush(self) -> str:
        """What is left at the end."""
        text = self._decode(self._context + self._waiting)[len(self._decode(self._context)) :]
        text = self._cut(len(self._text)) + text
        self._context, self._waiting = [], []
        return cleaning.clean(text) if self._clean else text

    def follow(self, ids: Sequence[int]) -> None:
        """What is fed next comes after `ids`, which decide whether a space stands between."""
        self._waiting = list(ids)
        self._advance(len(ids))

    def _advance(self, count: int) -> None:
        known = self._context + self._waiting[:count]
        del self._waiting[:count]
        start = len(known) - 1
        while start > 0 and not self._decode(known[start:]):
            start -= 1
        self._context = known[start:]

    def _cut(self, length: int) -> str:
        text, self._text = self._text[:length], self._text[length:]
        return text
