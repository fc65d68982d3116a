"""Which tokens make up a word, for objectives that hide whole words; and which tokens are no text."""

from __future__ import annotations

import numpy as np

from transformer import text
from transformer.text.special import BYTE

NAMED = ("published", "sentencepiece", "marian")  # the kinds whose spellings are names in a vocabulary
INSIDE, BEFORE, BYTE_LEVEL = "##", "\u2581", "\u0120"  # of WordPiece; of SentencePiece; of bytes written as characters


def special_ids(tokenizer: text.Tokenizer) -> np.ndarray:
    """The ids that stand for no text, in order: special tokens, and ids without a name. `[n]` int32."""
    nameless = (index for index, name in enumerate(tokenizer.spellings) if not name)
    return np.unique(np.array([*tokenizer.special, *nameless], np.int32))


class Words:
    """The words of rows of token ids.

    Letters and digits of ASCII and all characters beyond make up words. A token goes on with the word of the one before
    it where both have such a character on the side of the other, so that signs stand alone, and a space begins a word.
    SentencePiece writes that space at the front of a piece. WordPiece instead marks what is not the beginning of a word
    by "##" at its front. Special tokens are words of their own.

    Args:
      tokenizer: of the rows.

    Raises:
      ValueError: if the names in its vocabulary do not tell where words begin.
    """

    def __init__(self, tokenizer: text.Tokenizer):
        self._joins, self._open = _pieces(tokenizer) if tokenizer.kind in NAMED else _bytes(tokenizer.spellings)
        special = special_ids(tokenizer)
        self._joins[special] = self._open[special] = False

    def number(self, row: np.ndarray) -> np.ndarray:
        """The word of each token, counted from 0: `[..., T]` ids to `[..., T]` int32."""
        begins = np.zeros(row.shape, bool)
        begins[..., 1:] = ~(self._open[row[..., :-1]] & self._joins[row[..., 1:]])
        return np.cumsum(begins, axis=-1, dtype=np.int32)


def _bytes(spellings: tuple[bytes, ...] | list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each token may go on with a word, and whether a word may go on after it: `[V]` booleans."""
    first, last = (np.array([_of_word(name[side]) for name in spellings]) for side in (slice(1), slice(-1, None)))
    return first, last


def _of_word(byte: bytes) -> bool:
    return byte.isalnum() or byte >= b"\x80"


def _pieces(tokenizer: text.Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """As `_bytes`, of names in a vocabulary."""
    names = [name.decode() for name in tokenizer.spellings]
    found = {mark: sum(name.startswith(mark) for name in names) for mark in (INSIDE, BEFORE, BYTE_LEVEL)}
    mark = max(found, key=found.get)
    if not found[mark] or mark == BYTE_LEVEL:
        raise ValueError(
            f"the tokenizer of kind {tokenizer.kind!r} does not mark words: few or none of its {len(names)} names "
            f"begin with {INSIDE!r} or {BEFORE!r}; predict single tokens instead of whole words"
        )
    marked = np.array([name.startswith(mark) for name in names])
    if mark == INSIDE:
        return marked, np.ones(len(names), bool)
    # A piece that names a byte is that byte; the sign for a space is no letter, but what follows it belongs to it.
    first, last = _bytes([bytes([int(name[3:5], 16)]) if BYTE.fullmatch(name) else name.encode() for name in names])
    return first & ~marked, last
