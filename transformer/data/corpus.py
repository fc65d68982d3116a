"""A corpus: text tokenised once into two streams of ids on disk, and the fingerprint of what determines them.

The folder holds `train.npy` and `validation.npy` (one-dimensional, mapped into memory when read), the tokenizer's own
files, and `corpus.json` with the recipe, its fingerprint and the counts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from transformer import text
from transformer.data import preparing
from transformer.data.config import Data, Objective
from transformer.data.preparing import Value
from transformer.data.sources import Document, documents
from transformer.data.spans import span_lengths
from transformer.data.split import divide

SIDES = ("train", "validation")


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
    objective: Objective = Objective()

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of `recipe`."""
        return preparing.fingerprint(self.recipe)

    @property
    def stride(self) -> int:
        """The tokens from the beginning of one row to that of the next."""
        if self.objective.kind != "spans":
            return self.length
        return span_lengths(self.length, rate=self.objective.rate, span=self.objective.span)[0]

    @property
    def reach(self) -> int:
        """The tokens that a row is made from: those that predict the next one have one more than they are apart."""
        return self.stride + (self.objective.kind in ("causal", "prefix"))

    @property
    def packs(self) -> bool:
        """Whether rows hold whole documents: windows over them would cut spans at their borders."""
        return self.segments and self.objective.kind == "spans"

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

    The same means: an equal hash of all text, equal settings of split, tokenizer, objective, length and segments, and
    arrays with the hashes they were written with. So a second call reads and hashes the source, but trains and
    tokenises nothing. The tokenizer learns from the training side only; a table of characters is the exception, because
    one that lacks a validation character could not spell it. All text is held in memory meanwhile. Where several
    processes share a disk, let one return before the others call.

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
    loaded = tokenizer or preparing.load_tokenizer(config)
    request = _request(config, found, loaded)
    return preparing.once(folder, request, read, lambda: _build(folder, config, request, found, loaded))


def _request(config: Data, found: Iterable[Document], loaded: text.Tokenizer | None) -> dict[str, Value]:
    """What is asked for, known without training or tokenising. The text counts, not its names or where it lies."""
    request = {
        "content": preparing.digest(document.text for document in found),
        "split": config.split,
        "validation": config.validation,
        "tokenizer": preparing.wanted_tokenizer(config, loaded),
        "length": config.length,
        "segments": config.segments,
    }
    if config.objective != Objective():  # so that older corpora, which knew no other, are still known
        request["objective"] = json.dumps(dataclasses.asdict(config.objective))
    return request


def _build(
    folder: pathlib.Path,
    config: Data,
    request: Mapping[str, Value],
    found: list[Document],
    loaded: text.Tokenizer | None,
) -> None:
    sides = dict(zip(SIDES, divide(found, config), strict=True))
    texts = {name: [document.text for document in side] for name, side in sides.items()}
    tokenizer = loaded or preparing.train_tokenizer(config, texts["train"], [document.text for document in found])
    preparing.check_tokenizer(config, tokenizer)
    streams = {name: _stream(side, tokenizer) for name, side in sides.items()}
    shape = Corpus(**streams, tokenizer=tokenizer, length=config.length, segments=config.segments,
                   objective=config.objective, counts={}, recipe={})  # fmt: skip
    for name, stream in streams.items():
        _check_room(shape, name, stream)
    counts = {name: dataclasses.asdict(_count(sides[name], streams[name], tokenizer)) for name in SIDES}
    preparing.write(folder, request, tokenizer, streams, counts)


def _check_room(shape: Corpus, name: str, stream: np.ndarray) -> None:
    """Raises ValueError unless a side has a row and, where documents are packed, one that has a span to hide."""
    if len(stream) < shape.reach:
        raise ValueError(
            f"the {name} side has {len(stream)} tokens, but one row needs {shape.reach} at "
            f"data.length={shape.length}: use more text, a shorter data.length or another data.validation"
        )
    apart = np.diff(np.flatnonzero(stream == shape.tokenizer.opening), append=len(stream))
    if shape.packs and apart.max() < 3:
        raise ValueError(
            f"the {name} side has no document of two tokens or more, so no span can be hidden: use more text, another "
            "data.validation, or data.segments=False, where rows run on over documents"
        )


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


def read(record: dict, streams: dict[str, np.ndarray], tokenizer: text.Tokenizer) -> Corpus:
    """A corpus from what lies in its folder, as `preparing.existing` hands it on."""
    recipe = record["recipe"]
    return Corpus(
        **streams,
        tokenizer=tokenizer,
        length=recipe["length"],
        segments=recipe["segments"],
        objective=Objective(**json.loads(recipe.get("objective", "{}"))),
        counts={name: Counts(**record["counts"][name]) for name in SIDES},
        recipe=recipe,
    )
