"""The kinds of tokenizer by name: which to train, and which lies in a folder."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Sequence

from transformer.text import bpe, storage, tables
from transformer.text.bpe import BPE
from transformer.text.byte import Bytes
from transformer.text.characters import Characters
from transformer.text.marian import Marian
from transformer.text.published import Published
from transformer.text.sentencepiece import SentencePiece
from transformer.text.tokenizer import Tokenizer

KINDS: dict[str, type[Tokenizer]] = {kind.kind: kind for kind in (Bytes, Characters, BPE)}
OPTIONS = {Characters.kind: ("fallback", "end"), BPE.kind: ("special",)}  # of training
FILES: tuple[tuple[tuple[str, ...], type[Tokenizer]], ...] = (  # of published models, in order of preference
    ((storage.SOURCE, storage.TARGET, storage.VOCABULARY), Marian),
    ((storage.T5,), SentencePiece),
    ((storage.LLAMA,), SentencePiece),
    ((storage.VOCABULARY, storage.MERGES), BPE),
    ((storage.WORDS,), Published),
)


def train(kind: str, texts: Iterable[str], vocab: int, **options: bool | Sequence[str]) -> Tokenizer:
    """A tokenizer of the named kind, made for `texts`.

    Args:
      kind: "bytes", "characters" or "bpe".
      texts: documents; not read by "bytes".
      vocab: how many ids to learn; read by "bpe" only, the others have as many as they need.
      **options: `fallback` and `end` of `Characters`, `special` of `BPE`; `Bytes` has none.

    Raises:
      ValueError: if `kind` is unknown, an option is not one of its own, or as the kind's own `train`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is no tokenizer: choose one of {', '.join(KINDS)}")
    known = OPTIONS.get(kind, ())
    for name in options:
        if name not in known:
            raise ValueError(
                f"{name} is no option of {kind!r}, which has {' and '.join(known) or 'none'}: leave it out"
            )
    if kind == Characters.kind:
        return Characters.train(texts, **options)
    return BPE.train(texts, vocab, **options) if kind == BPE.kind else Bytes()


def load(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer in `folder`: one that was saved there, or that of a published model.

    Published are Hugging Face's `tokenizer.json`, which counts where others lie beside it; Marian's `source.spm`,
    `target.spm` and `vocab.json`; T5's `spiece.model`; Llama's and Gemma's `tokenizer.model`; the `vocab.json` and
    `merges.txt` of GPT-2 and RoBERTa; BERT's `vocab.txt`. Byte-level BPE is read as `BPE` where it has all bytes.

    Raises:
      FileNotFoundError: if there is no such folder, or none of those files in it.
      ValueError: if `folder` is a file or holds more than one kind of those that are trained here, a file is damaged,
        or the package to read it is missing.
    """
    path = pathlib.Path(folder)
    if not path.exists():
        raise FileNotFoundError(f"folder={str(path)!r} does not exist: give one that holds a tokenizer")
    if not path.is_dir():
        raise ValueError(f"folder={str(path)!r} is a file: give the folder that holds the tokenizer")
    found = storage.present(path)
    if len(found) > 1:
        names = " and ".join(storage.KINDS[kind] for kind in found)
        raise ValueError(f"folder={str(path)!r} holds {names}: keep the one tokenizer that is meant")
    if found:
        return _library(path) if found == [BPE.kind] else KINDS[found[0]].load(path)
    for names, kind in FILES:
        if all((path / name).is_file() for name in names):
            return _library(path) if kind is BPE else kind.load(path)
    raise FileNotFoundError(_nothing_known(path))


def _library(folder: pathlib.Path) -> Tokenizer:
    """What the `tokenizers` library reads: as `BPE` if it can be, which is lossless and decodes byte by byte."""
    path, table, special = tables.read(folder)
    return (Published if bpe.obstacle(table) else BPE).take(path, table, special)


def _nothing_known(path: pathlib.Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    seen = ", ".join([*names[:8], *(["..."] if len(names) > 8 else [])]) or "nothing"
    wanted = ", ".join([*storage.KINDS.values(), *(" with ".join(files) for files, _ in FILES)])
    return f"folder={str(path)!r} holds {seen}, and no tokenizer: expected one of {wanted}"
