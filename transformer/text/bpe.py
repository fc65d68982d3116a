"""Byte-level byte-pair encoding as in GPT-2 (Radford et al. 2019, section 2.2; BPE: Sennrich et al. 2016).

Text is cut into words by GPT-2's pattern, words into UTF-8 bytes, and the most frequent neighbours are merged, again
and again. The 256 bytes are in every vocabulary, so there is no unknown text. The `tokenizers` library does the work.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from transformer.text import library, spelling, storage, tables
from transformer.text import special as roles
from transformer.text.library import LibraryTokenizer
from transformer.text.special import Special
from transformer.text.tokenizer import END

SMALLEST = 257  # every byte, and the end


class BPE(LibraryTokenizer):
    """Byte-level BPE. `BPE.train` and `BPE.load` make one; `<|endoftext|>` within text is ordinary text.

    Args:
      table: the library's tokenizer: a BPE model over the byte alphabet. It is taken over, not copied.
      end: how the end id is written in its vocabulary; None if it has none.
      special: its other special tokens.

    Raises:
      ValueError: if `table` is not byte-level BPE, lacks a byte, or lacks `end` or another token that is named.
    """

    kind = "bpe"
    errors = spelling.REPLACE

    def __init__(self, table: tokenizers.Tokenizer, *, end: str | None = END, special: Special | None = None):
        vocabulary = table.get_vocab(with_added_tokens=True)
        names = library.spellings(vocabulary)
        reason = obstacle(table)
        if reason:
            raise ValueError(reason)
        self.spellings = tuple(map(_bytes, names))
        super().__init__(table, dataclasses.replace(special or Special(), eos=end))

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int, *, special: Sequence[str] = ()) -> BPE:
        """Learns merges from `texts`, the same ones every time; the end id and then those of `special` come last.

        Args:
          texts: documents.
          vocab: how many ids to learn, the 256 bytes and the special ones included. A corpus too small for that gives
            fewer: `size` says how many.
          special: further special tokens, which no text encodes to. A name that is usual for a role, such as `[MASK]`
            or `<pad>`, gives it that role, and `<extra_id_0>` and so on are `sentinels`.

        Raises:
          ValueError: if `vocab` is below 257 and the number of further special tokens, one of which could be taken for
            text or comes twice; or a text is no string or holds a lone surrogate.
        """
        table = tables.byte_level(models.BPE())
        names = _check_special(table, special)
        smallest = SMALLEST + len(names)
        if not isinstance(vocab, (int, np.integer)) or vocab < smallest:
            more = f", and {len(names)} further special tokens" if names else ""
            raise ValueError(
                f"vocab={vocab!r} must be an integer from {smallest} up: the 256 bytes and the end come first{more}"
            )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        learnt = vocab - 1 - len(names)
        trainer = trainers.BpeTrainer(vocab_size=learnt, initial_alphabet=alphabet, show_progress=False)
        table.train_from_iterator(map(spelling.check_unicode, spelling.check_texts(texts)), trainer)
        table.add_special_tokens([END, *names])
        return cls(table, special=roles.complete({"eos": END}, ((), ()), names))

    @classmethod
    def take(cls, path: pathlib.Path, table: tokenizers.Tokenizer, special: Special) -> BPE:
        """The tokenizer that was read from `path`; raises ValueError if it is damaged or no byte-level BPE."""
        try:
            return cls(table, end=special.end, special=special)
        except ValueError as error:
            raise storage.damaged(path, error) from None

    def _arguments(self) -> dict[str, object]:
        return {"end": self._special.end, "special": self._special}

    def _table(self) -> object:
        content = json.loads(self._tokenizer.to_str())
        vocabulary = sorted(self._tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        cutting = [content["normalizer"], content["pre_tokenizer"]]
        table = [vocabulary, content["model"]["merges"], cutting, self._special.end]
        # What most files leave at its default stays out, so that their fingerprints are those of earlier versions.
        if content["model"].get("ignore_merges"):
            table.append("whole words first")
        around = tables.around(self._tokenizer)
        if any(around) or self.begin not in (None, self.end):
            table.append([self._special.begin, *around])
        return table


def obstacle(table: tokenizers.Tokenizer) -> str | None:
    """Why `table` cannot be a `BPE`; None if it can."""
    decoder = tables.state(table.decoder) or {}
    if not isinstance(table.model, models.BPE) or decoder.get("type") != "ByteLevel":
        return f"expected byte-level BPE, got {type(table.model).__name__} decoded by {decoder.get('type')}"
    vocabulary = table.get_vocab(with_added_tokens=True)
    missing = [byte for letter, byte in _alphabet().items() if letter not in vocabulary]
    if missing:
        return f"byte {missing[0]} is not in the vocabulary: byte-level BPE needs all 256"
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        return f"the ids of the vocabulary must be 0 to {len(vocabulary) - 1}, each once"
    return None


def _check_special(table: tokenizers.Tokenizer, special: Sequence[str]) -> list[str]:
    """The names, none of which `table` could learn as a piece of text."""
    if isinstance(special, str):
        raise ValueError(f"special={special!r} must be a list of names, not one string: pass [{special!r}]")
    names = list(special)
    for index, name in enumerate(names):
        spelling.check_text(name, f"special[{index}]")
        readable = name.isascii() and name.isprintable() and " " not in name
        if not readable or len(table.pre_tokenizer.pre_tokenize_str(name)) < 2:
            raise ValueError(
                f"special[{index}]={name!r} could be taken for text: use printable ASCII in which letters and marks "
                "meet, as in '[MASK]' or '<extra_id_0>'"
            )
        if name in (END, *names[:index]):
            raise ValueError(f"special[{index}]={name!r} is there already: name each token once, and not the end")
    return names


@functools.cache
def _alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a vocabulary, as GPT-2 chose them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _bytes(token: str) -> bytes:
    alphabet = _alphabet()
    # Added tokens are written as they are, not in the alphabet of bytes.
    in_bytes = all(letter in alphabet for letter in token)
    return bytes(alphabet[letter] for letter in token) if in_bytes else token.encode()
