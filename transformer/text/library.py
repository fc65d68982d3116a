"""What the tokenizers of the `tokenizers` library share: ids of texts on all cores, special tokens, files."""

from __future__ import annotations

import abc
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers, processors

from transformer.text import spelling, storage, tables
from transformer.text.special import Special
from transformer.text.tokenizer import Tokenizer

BLOCK = 4_000_000  # characters in a call to the library, which keeps several times their size meanwhile


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the library, with its special tokens by role.

    Args:
      table: the library's tokenizer. It is taken over, not copied.
      special: its special tokens; those that have a role become special in the table.

    Raises:
      ValueError: if a special token is not in the vocabulary.
    """

    clean = False  # whether decoding takes away spaces, as `cleaning.clean` does

    def __init__(self, table: tokenizers.Tokenizer, special: Special):
        special = _mark(table, special)
        table.no_truncation()
        table.no_padding()
        table.encode_special_tokens = True  # as text
        self._tokenizer = table
        self._special = special
        self._plain = _without_special_pieces(table, special.unk)
        self.begin, self.end, self.pad, self.mask = (
            None if name is None else table.token_to_id(name)
            for name in (special.begin, special.end, special.pad, special.mask)
        )

    def encode(self, text: str, *, special: bool = False) -> np.ndarray:
        """Ids of `text`: `[T]` int32; arguments and errors as in `Tokenizer.encode`."""
        spelling.check_text(text)
        if not special:
            return self.encode_batch([text])[0]
        return _encode(self._published, [spelling.check_unicode(text)], special=True)[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, in order, on all cores (`TOKENIZERS_PARALLELISM=false` in the environment: on one)."""
        checked = map(spelling.check_unicode, spelling.check_texts(texts))
        return [ids for block in _blocks(checked) for ids in _encode(self._plain, block, special=False)]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads `tokenizer.json`, or else `vocab.json` and `merges.txt`, or else `vocab.txt`.

        Special tokens are those of `tokenizer_config.json`, then of `special_tokens_map.json`, then what the tokenizer
        puts around a text; without any of these the end is `<|endoftext|>` if the vocabulary has it.

        Raises:
          ValueError: if a file is damaged, or holds another kind of table.
        """
        return cls.take(*tables.read(pathlib.Path(folder)))

    @classmethod
    @abc.abstractmethod
    def take(cls, path: pathlib.Path, table: tokenizers.Tokenizer, special: Special) -> Self:
        """The tokenizer that was read from `path`; raises ValueError if it is damaged or of another kind."""

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes Hugging Face's `tokenizer.json` and `tokenizer_config.json`. Raises as `Tokenizer.save`."""
        path = storage.claim(folder, self.kind, storage.BPE)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": self.clean,  # where it is left out, it may be true: " ." becomes "."
            **self._special.settings(),
        }
        storage.write_json(path / storage.SETTINGS, settings)
        storage.write(path / storage.BPE, self._tokenizer.to_str())

    def with_opening(self) -> Self:
        """As `Tokenizer.with_opening`."""
        if self.opening is None or self.opening in self.encode("", special=True):
            return self
        name = self._tokenizer.id_to_token(self.opening)
        table = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        table.post_processor = processors.TemplateProcessing(
            single=[name, "$A"], pair=[name, "$A", "$B"], special_tokens=[(name, self.opening)]
        )
        special = dataclasses.replace(self._special, bos=name)
        return type(self)(table, **(self._arguments() | {"special": special}))

    @functools.cached_property
    def _published(self) -> tokenizers.Tokenizer:
        """The library's tokenizer that reads special tokens in text."""
        return tokenizers.Tokenizer.from_str(self._tokenizer.to_str())

    @functools.cached_property
    def _hidden(self) -> frozenset[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    def __reduce__(self) -> tuple[object, ...]:
        # The library's own pickle forgets that special tokens within text are text.
        return _revive, (type(self), self._tokenizer.to_str(), self._arguments())

    def _arguments(self) -> dict[str, object]:
        """What the constructor takes besides the table."""
        return {"special": self._special}


def spellings(vocabulary: dict[str, int]) -> list[str]:
    """The name of each id, empty where there is none; raises ValueError if two have one id, or one is out of bounds."""
    size = max(vocabulary.values(), default=-1) + 1
    if len(set(vocabulary.values())) != len(vocabulary) or size > 2 * len(vocabulary) + 2**16:
        raise ValueError(f"the ids of the vocabulary must be 0 to {len(vocabulary) - 1}, each once")
    names = [""] * size
    for name, index in vocabulary.items():
        names[index] = name
    return names


def _mark(table: tokenizers.Tokenizer, special: Special) -> Special:
    """Makes tokens with a role special in `table`; returns the roles of those that it has."""
    for role, name in (("begin", special.begin), ("end", special.end), ("pad", special.pad)):
        if name is not None and table.token_to_id(name) is None:
            raise ValueError(f"the {role} token {name!r} is not in the vocabulary of {table.get_vocab_size()}")
    marked = {token.content for token in table.get_added_tokens_decoder().values() if token.special}
    known = [name for name in special.names if table.token_to_id(name) is not None]
    table.add_special_tokens([name for name in known if name not in marked])  # they are there, so they keep their ids
    return Special(**{role: name if name in known else None for role, name in special.roles().items()})


def _revive(kind: type[LibraryTokenizer], table: str, arguments: dict[str, object]) -> LibraryTokenizer:
    return kind(tokenizers.Tokenizer.from_str(table), **arguments)


def _without_special_pieces(table: tokenizers.Tokenizer, unknown: str | None) -> tokenizers.Tokenizer:
    """`table`, or a copy that cuts the names of special tokens in two, where its model would find them in text."""
    whole = []
    for index, token in table.get_added_tokens_decoder().items():
        if token.special and token.content != unknown and len(token.content) > 1:
            try:
                found = table.encode(token.content, add_special_tokens=False).ids
            except Exception:  # a model without a token for what it does not know
                continue
            whole += [token.content] if index in found else []
    if not whole:
        return table
    rests = {name[0]: [re.escape(other[1:]) for other in whole if other[0] == name[0]] for name in whole}
    places = "|".join(f"(?<={re.escape(first)})(?={'|'.join(rest)})" for first, rest in rests.items())
    cut = pre_tokenizers.Split(tokenizers.Regex(places), "isolated")
    copy = tokenizers.Tokenizer.from_str(table.to_str())
    copy.pre_tokenizer = pre_tokenizers.Sequence([*filter(None, [table.pre_tokenizer]), cut])
    copy.encode_special_tokens = True
    return copy


def _encode(table: tokenizers.Tokenizer, texts: list[str], special: bool) -> list[np.ndarray]:
    try:
        # The fast variant leaves out where tokens lie in the text, which takes a third of the time.
        encodings = table.encode_batch_fast(texts, add_special_tokens=special)
    except Exception as error:  # the library raises nothing more exact
        raise ValueError(f"text holds what this tokenizer cannot spell ({error}): leave it out") from None
    return [np.array(encoding.ids, np.int32) for encoding in encodings]


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block, length = [], 0
    for text in texts:
        block.append(text)
        length += len(text)
        if length >= BLOCK:
            yield block
            block, length = [], 0
    if block:
        yield block
