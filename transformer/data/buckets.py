"""Batches of pairs of about the same length, counted in tokens.

Pairs are sorted into buckets by the longer of their two sides, and a batch holds pairs of one bucket, padded to its
length: as many rows as make up a number of tokens (Vaswani et al. 2017, section 5.1, batches by about 25,000 tokens of
either language). Every bucket has one shape, so there are as many compiled programs as buckets.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from transformer.data import packing
from transformer.data.bitext import Both
from transformer.data.iteration import Batches, process_slice, stack
from transformer.data.objectives import Example, sequence_to_sequence
from transformer.data.preparing import begins_with
from transformer.text import Tokenizer


class Bucket(NamedTuple):
    """Pairs whose longer side has at most `length` tokens, more than the bucket before; `rows` go into a batch."""

    members: np.ndarray  # [N]
    length: int
    rows: int

    @property
    def batches(self) -> int:
        """How many an epoch has; the last one may hold rows of weight 0."""
        return -(-len(self.members) // self.rows)


def buckets(lengths: np.ndarray, most: int, *, batch_size: int, batch_tokens: int) -> list[Bucket]:
    """Pairs by length, shortest first. A bucket with fewer pairs than one of its batches joins the next one.

    Args:
      lengths: `[N]` tokens of the longer side, its end included.
      most: no bucket is longer, as a model may have learned no positions beyond it.
      batch_size: what the rows of every batch are a multiple of; with `batch_tokens` 0, all rows.
      batch_tokens: places of either side in a batch, at most, unless `batch_size` rows have more.
    """
    borders = [min(border, most) for border in ladder(int(lengths.max()))]
    found, waiting = [], np.zeros(0, np.int64)
    for low, high in zip([0, *borders[:-1]], borders, strict=True):
        members = np.append(waiting, np.flatnonzero((lengths > low) & (lengths <= high)))
        rows = max(batch_size, batch_tokens // high // batch_size * batch_size)
        if len(members) < rows and high != borders[-1]:
            waiting = members
            continue
        waiting = np.zeros(0, np.int64)
        if len(members):
            found.append(Bucket(members, high, rows))
    return found


def ladder(longest: int) -> list[int]:
    """Lengths of buckets up to the first that holds `longest`: four to each doubling, multiples of four."""
    borders = [4]
    while borders[-1] < longest:
        borders.append(borders[-1] + max(4, 2 ** (borders[-1].bit_length() - 3)))
    return borders


class BucketBatches(Batches):
    """An endless iterator over batches of one bucket each; an epoch visits every pair once, in an order of its own."""

    def __init__(
        self,
        pairs: Both,
        tokenizer: Tokenizer,
        most: int,
        batch_size: int,
        batch_tokens: int,
        seed: int,
        start: int,
        process_index: int,
        process_count: int,
    ) -> None:
        super().__init__(batch_size, seed, start, process_index, process_count)
        self._pairs, self._tokenizer = pairs, tokenizer
        lengths = pairs.lengths
        self._buckets = buckets(lengths.max(axis=1), most, batch_size=batch_size, batch_tokens=batch_tokens)
        places = sum(bucket.batches * bucket.rows * bucket.length for bucket in self._buckets)
        self.fill = float(lengths.sum() / (2 * places))
        self.epoch = sum(bucket.batches for bucket in self._buckets)  # in batches
        self._planned = functools.lru_cache(maxsize=2)(self._plan)

    def batch_at(self, step: int) -> Example:
        """As `Batches.batch_at`."""
        epoch, place = divmod(step, self.epoch)
        order, members = self._planned(epoch)
        number, part = order[place].tolist()
        bucket = self._buckets[number]
        chosen = members[number][part * bucket.rows : (part + 1) * bucket.rows]
        return _batch(self._pairs, self._tokenizer, bucket, chosen, self._own(bucket.rows))

    def _plan(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """An epoch's batches in order, as `[batches, 2]` numbers of bucket and part, and the order in each bucket."""
        random = np.random.default_rng((self._seed, epoch))
        members = [random.permutation(bucket.members) for bucket in self._buckets]
        parts = [(number, part) for number, bucket in enumerate(self._buckets) for part in range(bucket.batches)]
        return random.permutation(np.asarray(parts)), members


def validation(
    pairs: Both,
    tokenizer: Tokenizer,
    most: int,
    batch_size: int,
    batch_tokens: int,
    process_index: int,
    process_count: int,
) -> Iterator[Example]:
    """Every pair once, shortest first."""
    process_slice(batch_size, process_index, process_count)
    for bucket in buckets(pairs.lengths.max(axis=1), most, batch_size=batch_size, batch_tokens=batch_tokens):
        own = process_slice(bucket.rows, process_index, process_count)
        for first in range(0, len(bucket.members), bucket.rows):
            yield _batch(pairs, tokenizer, bucket, bucket.members[first : first + bucket.rows], own)


def _batch(pairs: Both, tokenizer: Tokenizer, bucket: Bucket, chosen: np.ndarray, own: slice) -> Example:
    """The own rows of a batch; what is missing to all rows repeats others at weight 0."""
    start, end = begins_with(tokenizer), tokenizer.end
    rows = []
    for place, index in list(enumerate(np.resize(chosen, bucket.rows).tolist()))[own]:
        example = sequence_to_sequence(pairs.source[index], pairs.target[index], start=start, end=end)
        row = packing.pad(example, (bucket.length, bucket.length))
        if place >= len(chosen):
            row["weights"] = np.zeros_like(row["weights"])
        rows.append(row)
    return stack(rows)
