"""Marian's translation models (Junczys-Dowmunt et al. 2018, arXiv:1804.00344), as the Helsinki group publishes them.

Two SentencePiece models cut text, one for each language; the ids of their pieces are those of a common `vocab.json`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping

import tokenizers

from transformer.text import library, sentencepiece, storage, tables
from transformer.text import special as roles
from transformer.text.sentencepiece import PieceTokenizer
from transformer.text.special import Special

DEFAULTS = Special(eos="</s>", unk="<unk>", pad="<pad>")
KEPT = ("source_lang", "target_lang")  # what transformers wants to know besides


class Marian(PieceTokenizer):
    """Encodes the source language and decodes the target language. `Marian.load` makes one.

    A code at the beginning of a text, such as `>>fr<<`, is a token if the vocabulary has it: it says which language to
    translate to.

    Args:
      source: the bytes of the model that cuts text.
      target: the bytes of the model that joins pieces.
      vocabulary: ids of pieces.
      special: special tokens by role: the end, the unknown piece and padding.
      added: tokens that are not in the vocabulary, by id.
      settings: further settings for the transformers library.

    Raises:
      ValueError: if two pieces have one id, a special token has none, or the package is missing.
    """

    kind = "marian"

    def __init__(
        self,
        source: bytes,
        target: bytes,
        vocabulary: Mapping[str, int],
        *,
        special: Special,
        added: Mapping[int, tokenizers.AddedToken],
        settings: Mapping[str, object],
    ):
        self._models = source, target
        self._vocabulary = dict(vocabulary)
        self._kept = dict(settings)
        self._cutter = sentencepiece.processor(source)
        if special.unk not in vocabulary:
            raise ValueError(f"the unk token {special.unk!r} is not in the vocabulary")
        everything = self._vocabulary | {token.content: index for index, token in added.items()}
        names = library.spellings(everything)
        super().__init__(sentencepiece.processor(target), names, special, added, prefix=False, suffix=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Marian:
        """Reads `source.spm`, `target.spm` and `vocab.json`, and what `tokenizer_config.json` says of them.

        Raises:
          ValueError: if a file is damaged or of another class, the two languages have a vocabulary each, or the package
            is missing.
        """
        path = pathlib.Path(folder)
        tables.check_class(path, {"MarianTokenizer"}, storage.SOURCE)
        if roles.read_flag(path, "separate_vocabs", False):
            raise ValueError(
                f"{path / storage.SETTINGS} has separate_vocabs=true, but only one vocabulary for both languages can "
                "be read: give a model that has one"
            )
        source, target = (sentencepiece.load_model(path / name) for name in (storage.SOURCE, storage.TARGET))
        vocabulary = storage.read_object(path / storage.VOCABULARY)
        special = Special(**{**DEFAULTS.roles(), **roles.read_roles(path)})
        kept = {name: value for name, value in roles.read_settings(path).items() if name in KEPT}
        added = roles.read_added(path)
        try:
            if not all(isinstance(index, int) and index >= 0 for index in vocabulary.values()):
                raise ValueError("it must hold an id for each piece")
            return cls(source, target, vocabulary, special=special, added=added, settings=kept)
        except ValueError as error:
            raise storage.damaged(path / storage.VOCABULARY, error) from None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the models as they were read, `vocab.json` and `tokenizer_config.json`. Raises as `Tokenizer.save`."""
        path = storage.claim(folder, self.kind, storage.SOURCE)
        content = {"tokenizer_class": "MarianTokenizer", **self._kept, **self._settings()}
        storage.write_json(path / storage.SETTINGS, content)
        storage.write_json(path / storage.VOCABULARY, self._vocabulary)
        for name, model in zip((storage.TARGET, storage.SOURCE), reversed(self._models), strict=True):
            storage.write(path / name, model)

    def _encode(self, text: str) -> list[int]:
        unknown = self._vocabulary[self._special.unk]
        end = text.find("<<") + 2 if text.startswith(">>") else 0
        code = [self._vocabulary[text[:end]]] if text[:end] in self._vocabulary else []
        rest = self._cutter.encode(text[end:] if code else text, out_type=str)
        return code + [self._vocabulary.get(piece, unknown) for piece in rest]

    def _decode(self, ids: list[int]) -> str:
        # Pieces that only the source has are written as they are, with the sign for a space.
        return super()._decode(ids).replace("\u2581", " ").strip()

    def __reduce__(self) -> tuple[object, ...]:
        arguments = {"special": self._special, "added": self._added, "settings": self._kept}
        return functools.partial(type(self), *self._models, self._vocabulary, **arguments), ()

    def _table(self) -> object:
        digests = [hashlib.sha256(model).hexdigest() for model in self._models]
        return [*digests, sorted(self._vocabulary.items()), *self._rest()]
