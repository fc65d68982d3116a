"""Tokenizers of published models, of any scheme that the `tokenizers` library has.

WordPiece (BERT: Devlin et al. 2019), unigram models (T5, ALBERT: Kudo 2018, arXiv:1804.10959), BPE over characters with
bytes for all others (Llama 2: Touvron et al. 2023). They keep what their models need of a text, and often no more:
`decode(encode(text))` may differ from `text` in capitals, accents and spaces.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import models

from transformer.text import cleaning, library, storage
from transformer.text import special as roles
from transformer.text.library import LibraryTokenizer
from transformer.text.pieces import TextPieces
from transformer.text.special import Special

CLEAN = "clean_up_tokenization_spaces"


class Published(LibraryTokenizer):
    """Any tokenizer of the library. `Published.load` makes one.

    Args:
      table: the library's tokenizer. It is taken over, not copied.
      special: its special tokens by role.
      clean: decoding takes away spaces before marks, as `cleaning.clean` does; never with BPE, which has its own.

    Raises:
      ValueError: if two tokens have one id, or a special token is not in the vocabulary.
    """

    kind = "published"

    def __init__(self, table: tokenizers.Tokenizer, *, special: Special, clean: bool = False):
        names = library.spellings(table.get_vocab(with_added_tokens=True))
        self.spellings = tuple(name.encode() for name in names)
        self.clean = clean and not isinstance(table.model, models.BPE)
        super().__init__(table, special)

    @classmethod
    def take(cls, path: pathlib.Path, table: tokenizers.Tokenizer, special: Special) -> Published:
        """The tokenizer that was read from `path`; raises ValueError if it is damaged."""
        clean = roles.read_flag(path.parent, CLEAN, False)
        try:
            return cls(table, special=special, clean=clean)
        except ValueError as error:
            raise storage.damaged(path, error) from None

    def spell(self, ids: Sequence[int] | np.ndarray, *, keep_end: bool = False) -> bytes:
        """The UTF-8 of `decode`."""
        return self.decode(ids, keep_end=keep_end).encode()

    def decode(self, ids: Sequence[int] | np.ndarray, *, keep_end: bool = False) -> str:
        """The text that ids stand for together; arguments and errors as in `Tokenizer.decode`."""
        text = self._decode(self.shown(ids, keep_end=keep_end))
        return cleaning.clean(text) if self.clean else text

    def pieces(self) -> TextPieces:
        """What decodes a stream of ids as they come."""
        return TextPieces(self._decode, self._open, self.clean)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    @functools.cached_property
    def _open(self) -> frozenset[int]:
        """The ids of single bytes, whose meaning depends on the bytes that follow."""
        if "ByteFallback" not in repr(self._tokenizer.decoder):
            return frozenset()
        return frozenset(index for index, name in enumerate(self.spellings) if roles.BYTE.fullmatch(name.decode()))

    def _arguments(self) -> dict[str, object]:
        return {"special": self._special, "clean": self.clean}

    def _table(self) -> object:
        content = json.loads(self._tokenizer.to_str())
        scores = content["model"]["vocab"]
        if isinstance(scores, list):
            # The library's reader of JSON may change their last bit.
            content["model"]["vocab"] = [[name, float(np.float32(score))] for name, score in scores]
        kept = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
        return [*(content[name] for name in kept), self._special.begin, self._special.end]
