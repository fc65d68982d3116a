"""Rows of a token stream: windows that each epoch lays elsewhere, and made into what the objective asks for.

An epoch cuts the training stream into rows, T apart, and visits each once, in an order of its own. The grid of rows is
shifted by an offset in [0, T) drawn for the epoch, so that the same text meets a different context each time; fewer
than 2 T tokens at the ends of the stream are left out of any one epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from transformer.data.corpus import Corpus
from transformer.data.iteration import VALIDATION, Batches, generator, once, process_slice, shuffled, stack
from transformer.data.objectives import Example, causal, masked, prefix
from transformer.data.preparing import begins_with
from transformer.data.spans import span_corruption
from transformer.data.words import Words, special_ids

Make = Callable[[np.ndarray, np.random.Generator], Example]


class StreamBatches(Batches):
    """An endless iterator over batches of rows of a stream."""

    def __init__(
        self, corpus: Corpus, batch_size: int, seed: int, start: int, process_index: int, process_count: int
    ) -> None:
        super().__init__(batch_size, seed, start, process_index, process_count)
        self._corpus, stream, stride = corpus, corpus.train, corpus.stride
        self._make = None if corpus.objective.kind == "causal" else maker(corpus)
        # The last grid line is given up so that every offset leaves as many rows.
        self._rows = max(1, len(stream) // stride - 1)
        self._offsets = min(stride, len(stream) - (self._rows - 1) * stride - corpus.reach + 1)
        self._order = shuffled(self._rows, seed)

    def batch_at(self, step: int) -> Example:
        """As `Batches.batch_at`."""
        first, own = step * self._batch_size, self._own(self._batch_size)
        indices = np.arange(first + own.start, first + own.stop)  # in the endless order
        epochs, member = np.unique(indices // self._rows, return_inverse=True)
        offsets = np.asarray([self._offset(epoch) for epoch in epochs])[member]
        starts = np.asarray([self._order[index] for index in indices.tolist()]) * self._corpus.stride + offsets
        rows = windows(self._corpus.train, starts, self._corpus.reach)
        if self._make is None:
            return _causal(self._corpus, rows)
        randoms = (generator(self._seed, index) for index in indices.tolist())
        return stack([self._make(row, random) for row, random in zip(rows, randoms, strict=True)])

    def _offset(self, epoch: int) -> int:
        return int(np.random.default_rng((self._seed, epoch)).integers(self._offsets))


def validation(corpus: Corpus, batch_size: int, process_index: int, process_count: int) -> Iterator[Example]:
    """The whole validation stream once, in rows side by side.

    Of causal rows the last one is padded, so that every token but the first is a target. Other objectives leave out
    what fills no row, and always draw the same.
    """
    own = process_slice(batch_size, process_index, process_count)
    if corpus.objective.kind == "causal":
        return _padded(corpus, batch_size, own)
    make = maker(corpus)
    rows = (len(corpus.validation) - corpus.reach) // corpus.stride + 1

    def batch(indices: np.ndarray) -> Example:
        found = windows(corpus.validation, indices * corpus.stride, corpus.reach)
        randoms = (generator(VALIDATION, index) for index in indices.tolist())
        return stack([make(row, random) for row, random in zip(found, randoms, strict=True)])

    return once(rows, batch_size, own, batch)


def _padded(corpus: Corpus, batch_size: int, own: slice) -> Iterator[Example]:
    stream, length = corpus.validation, corpus.length
    targets = len(stream) - 1
    for first in range(0, targets, batch_size * length):
        begin = first + own.start * length
        wanted = (own.stop - own.start) * length
        tokens = np.zeros(wanted + 1, stream.dtype)
        real = stream[begin : begin + wanted + 1]
        tokens[: len(real)] = real
        batch = _causal(corpus, windows(tokens, np.arange(0, wanted, length), length + 1))
        batch["weights"] = (np.arange(wanted) < targets - begin).astype(np.float32).reshape(-1, length)
        yield batch


def sliding_batches(stream: np.ndarray, *, length: int, stride: int, batch_size: int) -> Iterator[Example]:
    """A stream of ids once, each target in the window that shows it the most of what came before.

    Windows of `length` inputs begin `stride` apart. Of the first one all targets count, of the others the last
    `stride`: so every token but the first is a target with weight 1 exactly once, and all but those of the first window
    are predicted from at least `length - stride + 1` tokens. Padding has weight 0.

    Args:
      stream: `[tokens]` integers, at least two.
      length: T of each window.
      stride: from 1, the most context and the most work, to `length`, windows side by side.
      batch_size: B, windows in a batch; the last batch is filled up.

    Raises:
      ValueError: if there is nothing to predict, or an argument is out of range.
    """
    if len(stream) < 2:
        raise ValueError(f"the text has {len(stream)} tokens, so there is nothing to predict: give more text")
    if not 1 <= stride <= length:
        raise ValueError(f"stride={stride} must lie between 1 and length={length}")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: use 1 or more")
    targets = len(stream) - 1
    starts = np.arange(0, max(targets - length, 0) + stride, stride)
    padded = np.concatenate([stream, np.zeros(starts[-1] + length, stream.dtype)])
    places = np.arange(length)
    for first in range(0, len(starts), batch_size):
        begin = np.resize(starts[first : first + batch_size], batch_size)  # repeats fill up the last batch
        batch = causal(windows(padded, begin, length + 1))
        fresh = (places >= length - stride) | (begin == 0)[:, None]
        real = np.arange(batch_size) < len(starts) - first
        batch["weights"] = (fresh & (begin[:, None] + places < targets) & real[:, None]).astype(np.float32)
        yield batch


def maker(corpus: Corpus) -> Make:
    """From a row of `corpus.reach` tokens, and a generator, to an example of the corpus's objective."""
    objective, tokenizer = corpus.objective, corpus.tokenizer
    documents = {"end": tokenizer.opening, "segments": corpus.segments}
    if objective.kind == "prefix":
        return lambda row, random: prefix(row, random, **documents)
    if objective.kind == "masked":
        options = {"mask": tokenizer.mask, "vocab": tokenizer.size, "rate": objective.rate}
        options |= {"special": special_ids(tokenizer), **documents}
        words = Words(tokenizer) if objective.whole_words else None
        return lambda row, random: masked(row, random, words=words and words.number(row), **options)
    options = {"sentinels": tokenizer.sentinels, "start": begins_with(tokenizer), "end": tokenizer.end}
    options |= {"rate": objective.rate, "span": objective.span}
    return lambda row, random: span_corruption(row, random, **options)


def windows(stream: np.ndarray, starts: np.ndarray, reach: int) -> np.ndarray:
    """The tokens `[starts, starts + reach)` of a stream: `[N] -> [N, reach]`, in one gather."""
    return np.lib.stride_tricks.sliding_window_view(stream, reach)[starts]


def _causal(corpus: Corpus, rows: np.ndarray) -> Example:
    return causal(rows, end=corpus.tokenizer.opening, segments=corpus.segments)
