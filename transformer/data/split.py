"""Which text trains and which text validates; never the same text in both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from transformer.data.config import Data
from transformer.data.sources import Document

Sides = tuple[list[Document], list[Document]]


def divide(documents: list[Document], config: Data) -> Sides:
    """The training and the validation documents, each in the order of the source.

    `config.split="document"` decides by a hash of each document's text, not of its name: copies of one text then fall
    on the same side, whatever they are called, and which side that is hardly depends on the other documents. `"tail"`
    lays all documents end to end and holds out the last `config.validation` of the characters, cutting the document
    that lies across the border; the training side has `int(n * (1 - validation))` of n characters.

    Raises:
      ValueError: if a side would stay empty.
    """
    return _by_tail(documents, config) if config.split == "tail" else _by_document(documents, config)


def _by_document(documents: list[Document], config: Data) -> Sides:
    points = [point(document.text) for document in documents]
    if len(set(points)) < 2:
        raise ValueError(
            f"data.split='document' needs two different documents, but {config.path!r} holds {len(set(points))}: "
            "use data.split='tail'"
        )
    held = held_out(points, config.validation)
    train = [document for document, out in zip(documents, held, strict=True) if not out]
    return train, [document for document, out in zip(documents, held, strict=True) if out]


def _by_tail(documents: list[Document], config: Data) -> Sides:
    left = int(sum(len(document.text) for document in documents) * (1 - config.validation))
    train, validation = [], []
    for document in documents:
        head, tail = document.text[:left], document.text[left:]
        left -= len(head)
        if head:
            train.append(Document(document.name, head))
        if tail:
            validation.append(Document(document.name, tail))
    for name, side in (("training", train), ("validation", validation)):
        if not side:
            raise ValueError(f"data.validation={config.validation} leaves no {name} text in {config.path!r}: change it")
    return train, validation


def point(text: str) -> float:
    """A number in [0, 1) that any change of the text moves; the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def held_out(points: Sequence[float], share: float) -> list[bool]:
    """Which of the points, two of which differ, are held out: those below `share`, and at least one, but never all."""
    # A threshold between the lowest and the highest point leaves at least one on either side.
    lowest, highest = min(points), max(points)
    return [each == lowest or (each < share and each != highest) for each in points]
