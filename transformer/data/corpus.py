"""A corpus: text tokenised once into two streams of ids on disk, and the fingerprint of what determines them.

The folder holds `train.npy` and `validation.npy` (one-dimensional, mapped into memory when read), the tokenizer's own
files, and `corpus.json` with the recipe, its fingerprint and the counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from transformer import text
from transformer.data import storage
from transformer.data.config import Data
from transformer.data.sources import Document, documents
from transformer.data.split import divide

SIDES = ("train", "validation")

Value = str | int | float | bool


@dataclasses.dataclass(frozen=True)
class Counts:
    """How much one side holds. `predicted_bytes` are the UTF-8 bytes that the targets, `stream[1:]`, stand for: an
    opening token stands for none, and the first token of a stream is never a target."""

    documents: int
    bytes: int
    tokens: int
    predicted_bytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Two token streams and what they were made from."""

    train: (
        np.ndarray
    )  # [tokens] uint16 or uint32, mapped from disk; the opening token, if there is one, opens each document
    validation: np.ndarray
    tokenizer: text.Tokenizer
    length: int  # T
    segments: bool
    counts: Mapping[str, Counts]  # by side
    recipe: Mapping[str, Value]  # what determines the batches; `fingerprint` is its hash

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of `recipe`."""
        return fingerprint(self.recipe)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per predicted token of the training stream."""
        return self.counts["train"].predicted_bytes / (len(self.train) - 1)

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes that the validation targets stand for: `nats / log(2) / validation_bytes` is bits per byte."""
        return self.counts["validation"].predicted_bytes


def prepare(config: Data, folder: str | os.PathLike[str], tokenizer: text.Tokenizer | None = None) -> Corpus:
    """Tokenises the text of `config` into `folder`, or maps what already lies there if it was made from the same.

    The same means: an equal hash of all text, equal settings of split, tokenizer, length and segments, and arrays with
    the hashes they were written with. So a second call reads and hashes the source, but trains and tokenises nothing.
    The tokenizer learns from the training side only; a table of characters is the exception, because one that lacks a
    validation character could not spell it. All text is held in memory meanwhile. Where several processes share a disk,
    let one return before the others call.

    Args:
      config: what to read, and how.
      folder: of the corpus.
      tokenizer: what `config.tokenizer.folder` holds or held; None loads it from there.

    Raises:
      ValueError: if the source is missing, empty, not UTF-8, or too short for one row on either side; if the tokenizer
        cannot be made or cannot spell the text; if `folder` holds anything but a corpus, or one made from something
        else, naming what differs. Nothing is left on disk then, and nothing is replaced.
    """
    folder = pathlib.Path(folder).expanduser().resolve()
    found = list(documents(config))
    if not found:
        wanted = f" in files ending in {' or '.join(config.suffixes)}" if pathlib.Path(config.path).is_dir() else ""
        raise ValueError(f"data.path={config.path!r} holds no text{wanted}: point it to some")
    loaded = tokenizer or _load_tokenizer(config)
    request = _request(config, found, loaded)
    if (corpus := _existing(folder, request)) is not None:
        return corpus
    if recorded := storage.read_record(folder).get("request"):
        check_fingerprint(recorded, request)
    _build(folder, config, request, found, loaded)
    if (corpus := _existing(folder, request)) is not None:
        return corpus
    raise ValueError(f"folder={str(folder)!r} was changed by another program meanwhile: give each run its own")


def load(folder: str | os.PathLike[str]) -> Corpus:
    """The corpus that `prepare` left in `folder`, without its source.

    Raises:
      ValueError: if there is none, or it is damaged.
    """
    folder = pathlib.Path(folder).expanduser().resolve()
    request = storage.read_record(folder).get("request")
    corpus = None if request is None else _existing(folder, request)
    if corpus is None:
        raise ValueError(f"folder={str(folder)!r} holds no intact corpus: train there again, which mends it")
    return corpus


def fingerprint(recipe: Mapping[str, Value]) -> str:
    """The SHA-256 of a recipe, as a checkpoint keeps it."""
    return hashlib.sha256(json.dumps(dict(recipe), sort_keys=True).encode()).hexdigest()


def check_fingerprint(expected: Mapping[str, Value], actual: Mapping[str, Value]) -> None:
    """Compares two values of `Corpus.recipe`: what a run began with, and what it would go on with.

    Raises:
      ValueError: naming every field that differs, with both values.
    """
    names = [name for name in {**expected, **actual} if expected.get(name) != actual.get(name)]
    if names:
        changes = "; ".join(f"data.{name} was {_short(expected, name)}, now {_short(actual, name)}" for name in names)
        raise ValueError(f"the data is not what the run began with: {changes}; restore it or begin a new run")


def _short(recipe: Mapping[str, Value], name: str) -> str:
    return str(recipe.get(name, "absent"))[:12]  # enough of a hash to tell two apart


def _request(config: Data, found: Iterable[Document], loaded: text.Tokenizer | None) -> dict[str, Value]:
    """What is asked for, known without training or tokenising. The text counts, not its names or where it lies."""
    content = hashlib.sha256()
    for document in found:
        encoded = document.text.encode()
        content.update(len(encoded).to_bytes(8) + encoded)
    wanted = config.tokenizer
    options = {"bpe": {"vocab": wanted.vocab}, "characters": {"fallback": wanted.fallback, "end": wanted.end}}
    training = " ".join([wanted.kind, *(f"{name}={value}" for name, value in options.get(wanted.kind, {}).items())])
    return {
        "content": content.hexdigest(),
        "split": config.split,
        "validation": config.validation,
        "tokenizer": loaded.fingerprint if loaded else training,
        "length": config.length,
        "segments": config.segments,
    }


def _load_tokenizer(config: Data) -> text.Tokenizer | None:
    if config.tokenizer.folder is None:
        return None
    try:
        return text.load(pathlib.Path(config.tokenizer.folder).expanduser())
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"data.tokenizer: {error}") from None


def _train_tokenizer(config: Data, train: list[Document], found: list[Document]) -> text.Tokenizer:
    wanted = config.tokenizer
    if wanted.kind == "characters":
        texts = [document.text for document in found]
        return text.Characters.train(texts, fallback=wanted.fallback, end=wanted.end)
    return text.train(wanted.kind, [document.text for document in train], wanted.vocab)


def _build(
    folder: pathlib.Path,
    config: Data,
    request: Mapping[str, Value],
    found: list[Document],
    loaded: text.Tokenizer | None,
) -> None:
    storage.refuse_strangers(folder)
    sides = dict(zip(SIDES, divide(found, config), strict=True))
    tokenizer = loaded or _train_tokenizer(config, sides["train"], found)
    if config.segments and tokenizer.opening is None:
        raise ValueError(
            f"data.segments=True needs a token that opens documents, and {tokenizer.kind} has none: choose another"
        )
    streams = {name: _stream(side, tokenizer) for name, side in sides.items()}
    for name, stream in streams.items():
        if len(stream) < config.length + 1:
            raise ValueError(
                f"the {name} side has {len(stream)} tokens, but one row needs data.length + 1 = {config.length + 1}: "
                "use more text, a shorter data.length or another data.validation"
            )
    recipe = {**request, "tokenizer": tokenizer.fingerprint}
    record = {
        "fingerprint": fingerprint(recipe),
        "recipe": recipe,
        "request": request,
        "counts": {name: dataclasses.asdict(_count(sides[name], streams[name], tokenizer)) for name in SIDES},
    }
    storage.write(folder, record, streams, tokenizer.save)


def _stream(side: list[Document], tokenizer: text.Tokenizer) -> np.ndarray:
    """`[tokens]`: the ids of all documents, each behind the opening token if the tokenizer has one."""
    opening = () if tokenizer.opening is None else (np.asarray([tokenizer.opening]),)
    encoded = tokenizer.encode_batch([document.text for document in side])
    pieces = [piece for ids in encoded for piece in (*opening, ids)]
    return np.concatenate(pieces).astype(np.uint16 if tokenizer.size <= 2**16 else np.uint32)


def _count(side: list[Document], stream: np.ndarray, tokenizer: text.Tokenizer) -> Counts:
    total = sum(len(document.text.encode()) for document in side)
    first = 0 if tokenizer.opening is not None else len(tokenizer.spell(stream[:1]))
    return Counts(len(side), total, len(stream), total - first)


def _existing(folder: pathlib.Path, request: Mapping[str, Value]) -> Corpus | None:
    """The corpus in `folder` if it is whole and was made for `request`."""
    record = storage.read_record(folder)
    if record.get("request") != dict(request):
        return None
    streams = storage.read_arrays(folder, record)
    if streams is None:
        return None
    recipe = record["recipe"]
    try:
        tokenizer = text.load(folder)
    except (ValueError, FileNotFoundError):
        return None
    if tokenizer.fingerprint != recipe["tokenizer"]:
        return None
    counts = {name: Counts(**record["counts"][name]) for name in SIDES}
    return Corpus(
        **streams,
        tokenizer=tokenizer,
        length=recipe["length"],
        segments=recipe["segments"],
        counts=counts,
        recipe=recipe,
    )
