"""Batches of packed rows: several examples in one row, told apart by segments, none cut.

Which examples share a row is decided once for a seed; each epoch visits the rows in an order of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from transformer.data import packing
from transformer.data.bitext import Both
from transformer.data.corpus import Corpus
from transformer.data.iteration import VALIDATION, Batches, generator, once, process_slice, shuffled, stack
from transformer.data.objectives import Example, sequence_to_sequence
from transformer.data.preparing import begins_with
from transformer.data.spans import noise, span_corruption, span_lengths
from transformer.text import Tokenizer


class Examples(NamedTuple):
    """What is packed: `make(index, random)` has `lengths[index]` targets and source tokens, at most `capacity`."""

    lengths: np.ndarray  # [N, 2]
    capacity: tuple[int, int]
    make: Callable[[int, np.random.Generator], Example]


def of_pairs(pairs: Both, tokenizer: Tokenizer, length: int) -> Examples:
    """A pair is an example."""
    start, end = begins_with(tokenizer), tokenizer.end

    def make(index: int, random: np.random.Generator) -> Example:
        del random
        return sequence_to_sequence(pairs.source[index], pairs.target[index], start=start, end=end)

    return Examples(pairs.lengths, (length, length), make)


def of_documents(stream: np.ndarray, corpus: Corpus) -> Examples:
    """A document of a stream, or as much of one as fits a row, is an example of span corruption."""
    options = {"rate": corpus.objective.rate, "span": corpus.objective.span}
    tokenizer, most = corpus.tokenizer, corpus.stride
    special = {"sentinels": tokenizer.sentinels, "start": begins_with(tokenizer), "end": tokenizer.end}
    starts, ends = _chunks(stream, tokenizer.opening, most)
    lengths, where = np.unique(ends - starts, return_inverse=True)
    sizes = []
    for length in lengths.tolist():
        corrupted, spans = noise(length, **options)
        sizes.append((corrupted + spans + 1, length - corrupted + spans + 1))

    def make(index: int, random: np.random.Generator) -> Example:
        return span_corruption(stream[starts[index] : ends[index]], random, **special, **options)

    capacity = (span_lengths(corpus.length, **options)[1], corpus.length)
    return Examples(np.asarray(sizes)[where], capacity, make)


class PackedBatches(Batches):
    """An endless iterator over batches of packed rows."""

    def __init__(
        self, examples: Examples, batch_size: int, seed: int, start: int, process_index: int, process_count: int
    ) -> None:
        super().__init__(batch_size, seed, start, process_index, process_count)
        self._rows = Rows(examples, seed)
        self._order = shuffled(len(self._rows), seed)
        self.fill = self._rows.fill

    def batch_at(self, step: int) -> Example:
        """As `Batches.batch_at`."""
        first, own = step * self._batch_size, self._own(self._batch_size)
        indices = range(first + own.start, first + own.stop)
        return stack([self._rows.make(self._order[index], generator(self._seed, index)) for index in indices])


def validation(examples: Examples, batch_size: int, process_index: int, process_count: int) -> Iterator[Example]:
    """Every example once, always with the same randomness."""
    rows, own = Rows(examples, 0), process_slice(batch_size, process_index, process_count)
    return once(
        len(rows),
        batch_size,
        own,
        lambda indices: stack([rows.make(index, generator(VALIDATION, index)) for index in indices.tolist()]),
    )


class Rows:
    """Packed rows by index."""

    def __init__(self, examples: Examples, seed: int):
        self._examples = examples
        self._plan = packing.plan(examples.lengths, examples.capacity, seed)
        self.fill = float(np.mean(packing.fill(self._plan, examples.lengths, examples.capacity)))

    def __len__(self) -> int:
        return len(self._plan)

    def make(self, row: int, random: np.random.Generator) -> Example:
        """The arrays of one row, `[T]` and `[S]`."""
        chosen = self._plan[row].tolist()
        return packing.pack([self._examples.make(index, random) for index in chosen], self._examples.capacity)


def _chunks(stream: np.ndarray, opening: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Where documents, cut into at most `most` tokens and without what opens them, begin and end.

    A rest of one token, which has nothing to keep beside what is hidden, is left out.
    """
    borders = np.append(np.flatnonzero(stream == opening), len(stream))
    starts, ends = [], []
    for begin, end in zip((borders[:-1] + 1).tolist(), borders[1:].tolist(), strict=True):
        cuts = np.arange(begin, end, most)
        starts.append(cuts)
        ends.append(np.minimum(cuts + most, end))
    starts, ends = np.concatenate(starts), np.concatenate(ends)
    enough = ends - starts >= 2
    if not enough.any():
        raise ValueError("there is no document of two tokens or more, so no span can be hidden: use more text")
    return starts[enough], ends[enough]
