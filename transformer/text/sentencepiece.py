"""Tokenizers of published models that come as a SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226).

`spiece.model` is T5's file, `tokenizer.model` Llama's and Gemma's. The package `sentencepiece` reads them; it is
imported with the first of them.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import tokenizers

from transformer.text import special as roles
from transformer.text import spelling, storage, tables
from transformer.text.pieces import TextPieces
from transformer.text.special import Special
from transformer.text.tokenizer import Tokenizer

T5 = {"MT5Tokenizer", "T5Tokenizer"}
LLAMA = {"CodeLlamaTokenizer", "GemmaTokenizer", "LlamaTokenizer"}
SENTINELS = 100  # T5's `<extra_id_0>` and so on, from the last id down


def load_model(path: pathlib.Path) -> bytes:
    """The bytes of a SentencePiece model; raises ValueError if they are damaged, or the package is missing."""
    model = path.read_bytes()
    try:
        processor(model)
    except RuntimeError as error:
        raise storage.damaged(path, error) from None
    return model


def processor(model: bytes):
    """The package's reader of a model; raises ValueError if there is no such package, RuntimeError if no such model."""
    try:
        import sentencepiece
    except ImportError:
        raise ValueError(
            "this tokenizer is a SentencePiece model, and the package sentencepiece is not installed: "
            "pip install 'transformer-research[sentencepiece]'"
        ) from None
    made = sentencepiece.SentencePieceProcessor()
    made.LoadFromSerializedProto(model)
    return made


class PieceTokenizer(Tokenizer):
    """What tokenizers with a SentencePiece model share.

    Args:
      reader: the package's reader of the model that decodes.
      names: of each id, as the model writes them, with U+2581 for a space; empty where there is none.
      special: special tokens by role.
      added: tokens that the model does not have, by id.
      prefix: whether `encode` with `special` begins with the token that opens a text.
      suffix: whether it ends with the one that closes it.

    Raises:
      ValueError: if a special token has no id.
    """

    def __init__(
        self,
        reader,
        names: Sequence[str],
        special: Special,
        added: Mapping[int, tokenizers.AddedToken],
        *,
        prefix: bool,
        suffix: bool,
    ):
        self._reader = reader
        self._names = tuple(names)
        self._special = special
        self._added = dict(added)
        ids = {name: index for index, name in enumerate(names) if name}
        for role, name in (("begin", special.begin), ("end", special.end), ("pad", special.pad)):
            if name is not None and name not in ids:
                raise ValueError(f"the {role} token {name!r} is not in the vocabulary of {len(names)}")
        self.begin, self.end, self.pad = (ids.get(name) for name in (special.begin, special.end, special.pad))
        self._prefix = [self.begin] if prefix and self.begin is not None else []
        self._suffix = [self.end] if suffix and self.end is not None else []
        known = {ids[name] for name in special.names if name in ids}
        self._marks = frozenset(known | {index for index, token in added.items() if token.special})
        self.spellings = tuple(name.encode() for name in names)

    @property
    def _hidden(self) -> frozenset[int]:
        return self._marks

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""

    def encode(self, text: str, *, special: bool = False) -> np.ndarray:
        """Ids of `text`: `[T]` int32; arguments and errors as in `Tokenizer.encode`."""
        spelling.check_unicode(spelling.check_text(text))
        written = self._written if special else self._always
        ids = []
        for index, part in enumerate(written.split(text)):
            ids += [self._ids[part]] if index % 2 else self._encode(part) if part else []
        return np.array([*self._prefix, *ids, *self._suffix] if special else ids, np.int32)

    def spell(self, ids: Sequence[int] | np.ndarray, *, keep_end: bool = False) -> bytes:
        """The UTF-8 of `decode`."""
        return self.decode(ids, keep_end=keep_end).encode()

    def decode(self, ids: Sequence[int] | np.ndarray, *, keep_end: bool = False) -> str:
        """The text that ids stand for together; arguments and errors as in `Tokenizer.decode`."""
        return self._decode(self.shown(ids, keep_end=keep_end))

    def pieces(self) -> TextPieces:
        """What decodes a stream of ids as they come."""
        return TextPieces(self._decode, self._open)

    def _decode(self, ids: list[int]) -> str:
        pieces = []
        for index in ids:
            # The package leaves out special pieces, and writes others that it does not know as they are.
            pieces.extend(self._names[index] if index in self._marks else [self._names[index]])
        return self._reader.decode_pieces(pieces)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        """Tokens that are read where their names stand in a text."""
        return {self._names[index]: index for index in {*self._added, *self._marks} if self._names[index]}

    @functools.cached_property
    def _written(self) -> re.Pattern:
        return _any_of(self._ids)

    @functools.cached_property
    def _always(self) -> re.Pattern:
        return _any_of(name for name, index in self._ids.items() if index not in self._marks)

    @functools.cached_property
    def _open(self) -> frozenset[int]:
        """The ids of single bytes, whose meaning depends on the bytes that follow."""
        return frozenset(index for index, name in enumerate(self._names) if roles.BYTE.fullmatch(name))

    def _settings(self) -> dict[str, object]:
        """What `tokenizer_config.json` says of every such tokenizer."""
        added = {str(index): token.__getstate__() for index, token in self._added.items()}
        return {**self._special.settings(), roles.DECODER: added, "clean_up_tokenization_spaces": False}

    def _rest(self) -> list[object]:
        """What determines the ids besides the models, as JSON values."""
        added = [[index, token.content, token.special] for index, token in self._added.items()]
        return [added, sorted(self._marks), self._prefix, self._suffix, self._special.begin, self._special.end]


class SentencePiece(PieceTokenizer):
    """A SentencePiece model. `SentencePiece.load` makes one.

    Args:
      model: the bytes of its file.
      special: special tokens by role.
      added: tokens that the model does not have, by id.
      name: the class in the transformers library that reads the file.
      prefix: whether `encode` with `special` begins with the token that opens a text.
      suffix: whether it ends with the one that closes it.

    Raises:
      ValueError: if a special token has no id, or the package is missing.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        *,
        special: Special,
        added: Mapping[int, tokenizers.AddedToken],
        name: str,
        prefix: bool,
        suffix: bool,
    ):
        self._model = model
        self._name = name
        reader = processor(model)
        count = reader.get_piece_size()
        names = [reader.id_to_piece(index) for index in range(count)]
        names += [""] * (max(added, default=-1) + 1 - count)
        for index, token in added.items():
            names[index] = token.content
        super().__init__(reader, names, special, added, prefix=prefix, suffix=suffix)
        control = {index for index in range(count) if reader.is_control(index) or reader.is_unknown(index)}
        self._marks |= control

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SentencePiece:
        """Reads `spiece.model`, or else `tokenizer.model`, and what `tokenizer_config.json` says of it.

        Raises:
          ValueError: if a file is damaged or of a class that reads it otherwise, or the package is missing.
        """
        path = pathlib.Path(folder)
        file = storage.T5 if (path / storage.T5).is_file() else storage.LLAMA
        named = tables.check_class(path, T5 if file == storage.T5 else LLAMA, file)
        model = load_model(path / file)
        reader = processor(model)
        special, added = _special(path, reader), roles.read_added(path)
        if file == storage.T5:
            chosen = {"name": named or "T5Tokenizer", "prefix": False, "suffix": True}
            added = {**_sentinels(path, reader.get_piece_size()), **added}
        else:
            usual = "GemmaTokenizer" if special.bos == "<bos>" else "LlamaTokenizer"
            prefix, suffix = (roles.read_flag(path, f"add_{role}_token", role == "bos") for role in ("bos", "eos"))
            chosen = {"name": named or usual, "prefix": prefix, "suffix": suffix}
        try:
            _check_ids(added, reader.get_piece_size())
            return cls(model, special=special, added=dict(sorted(added.items())), **chosen)
        except ValueError as error:
            raise storage.damaged(path / file, error) from None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the model as it was read, and `tokenizer_config.json`. Raises as `Tokenizer.save`."""
        file = storage.T5 if self._name in T5 else storage.LLAMA
        path = storage.claim(folder, self.kind, file)
        if file == storage.T5:
            own = {"extra_ids": sum(token.content.startswith("<extra_id_") for token in self._added.values())}
        else:
            own = {"add_bos_token": bool(self._prefix), "add_eos_token": bool(self._suffix)}
        storage.write_json(path / storage.SETTINGS, {"tokenizer_class": self._name, **self._settings(), **own})
        storage.write(path / file, self._model)

    def _encode(self, text: str) -> list[int]:
        return self._reader.encode(text)

    def __reduce__(self) -> tuple[object, ...]:
        wrapping = {"prefix": bool(self._prefix), "suffix": bool(self._suffix)}
        arguments = {"special": self._special, "added": self._added, "name": self._name, **wrapping}
        return functools.partial(type(self), self._model, **arguments), ()

    def _table(self) -> object:
        return [hashlib.sha256(self._model).hexdigest(), *self._rest()]


def _any_of(names) -> re.Pattern:
    """Splits a text at the names, longer ones first; at nothing, if there are none."""
    longest = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest))})" if longest else r"((?!))")


def _special(folder: pathlib.Path, reader) -> Special:
    """The roles that the files name, then those of the model itself."""
    own = {"bos": reader.bos_id(), "eos": reader.eos_id(), "pad": reader.pad_id(), "unk": reader.unk_id()}
    own = {role: reader.id_to_piece(index) for role, index in own.items() if index >= 0}
    return Special(**{**own, **roles.read_roles(folder)})


def _sentinels(folder: pathlib.Path, count: int) -> dict[int, tokenizers.AddedToken]:
    number = roles.read_settings(folder).get("extra_ids", SENTINELS)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= 2**16:
        raise storage.damaged(folder / storage.SETTINGS, f"extra_ids={number!r} must be a number of tokens")
    names = [f"<extra_id_{index}>" for index in reversed(range(number))]
    return {count + index: tokenizers.AddedToken(name, special=True) for index, name in enumerate(names)}


def _check_ids(added: Mapping[int, tokenizers.AddedToken], count: int) -> None:
    for index, token in added.items():
        if not 0 <= index < count + 2**16:
            raise ValueError(f"the added token {token.content!r} has the id {index}, far from the model's {count}")
