"""Ids decoded as they come, for a terminal: no character is shown before all its bytes are there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from transformer.text.tokenizer import Tokenizer


class StreamDecoder:
    """Turns ids into text piece by piece; all pieces and `flush()` together are `tokenizer.decode` of all ids.

    Args:
      tokenizer: any.
      keep_end: spell out the end id, and whatever else is no text, instead of leaving it out.
      after: ids that are shown already, such as a prompt's; some tokenizers write a space only behind others.
    """

    def __init__(self, tokenizer: Tokenizer, *, keep_end: bool = False, after: Sequence[int] | np.ndarray = ()):
        self._tokenizer = tokenizer
        self._keep_end = keep_end
        self._pieces = tokenizer.pieces()
        self._pieces.follow(tokenizer.shown(after, keep_end=keep_end))

    def feed(self, ids: int | Sequence[int] | np.ndarray) -> str:
        """The characters that are complete once `ids` (one integer, or `[T]`) follow what came before.

        Raises:
          ValueError: as `Tokenizer.decode`; the stream is then as it was before.
        """
        single = isinstance(ids, int) or getattr(ids, "ndim", None) == 0
        return self._pieces.feed(self._tokenizer.shown([ids] if single else ids, keep_end=self._keep_end))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, a held-back word, or nothing.

        The decoder may then be used anew.
        """
        return self._pieces.flush()
