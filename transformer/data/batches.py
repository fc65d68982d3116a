"""Batches as a function of (seed, step), gathered from a corpus's token stream.

An epoch cuts the training stream into rows of T + 1 tokens, T apart, and visits each once, in an order of its own. The
grid of rows is shifted by an offset in [0, T) drawn for the epoch, so that the same text meets a different context each
time; fewer than 2 T tokens at the ends of the stream are left out of any one epoch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import grain
import numpy as np

from transformer.data.corpus import Corpus
from transformer.data.objectives import Example, causal


class Batches:
    """An endless iterator over training batches, whose only state is `step`.

    The global batch at a step depends on the corpus, `batch_size` and `seed` alone; process p of P holds its rows
    `p B / P` to `(p + 1) B / P`.
    """

    def __init__(
        self, corpus: Corpus, batch_size: int, seed: int, start: int, process_index: int, process_count: int
    ) -> None:
        self._own = _process_slice(batch_size, process_index, process_count)
        if start < 0:
            raise ValueError(f"start={start}: steps count from 0")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: use a seed from 0 to 2**32 - 1")
        self.step = start
        self._corpus, self._batch_size, self._seed = corpus, batch_size, seed
        # A row needs T + 1 tokens; the last grid line is given up so that every offset leaves as many rows.
        self._rows = max(1, len(corpus.train) // corpus.length - 1)
        self._offsets = min(corpus.length, len(corpus.train) - self._rows * corpus.length)
        self._order = grain.MapDataset.range(self._rows).seed(seed).shuffle().repeat(reseed_each_epoch=True)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Example:
        batch = self.batch_at(self.step)
        self.step += 1
        return batch

    def batch_at(self, step: int) -> Example:
        """The batch of a step, without moving the iterator: arrays `[B / P, T]` as in `objectives.causal`."""
        first = step * self._batch_size
        indices = np.arange(first + self._own.start, first + self._own.stop)  # in the endless order
        epochs, member = np.unique(indices // self._rows, return_inverse=True)
        offsets = np.asarray([self._offset(epoch) for epoch in epochs])[member]
        starts = np.asarray([self._order[index] for index in indices.tolist()]) * self._corpus.length + offsets
        return _examples(self._corpus, _rows(self._corpus.train, starts, self._corpus.length))

    def _offset(self, epoch: int) -> int:
        return int(np.random.default_rng((self._seed, epoch)).integers(self._offsets))


def batches(
    corpus: Corpus, *, batch_size: int, seed: int, start: int = 0, process_index: int = 0, process_count: int = 1
) -> Batches:
    """Training batches from step `start` on, without end.

    Args:
      corpus: what `prepare` returned.
      batch_size: B, rows of the global batch.
      seed: of the order of rows and of each epoch's offset, in [0, 2**32).
      start: the step of the first batch; resuming at a step equals never having stopped.
      process_index, process_count: which slice of every global batch this process holds.

    Raises:
      ValueError: if an argument is out of range or `process_count` does not divide `batch_size`.
    """
    return Batches(corpus, batch_size, seed, start, process_index, process_count)


def validation_batches(
    corpus: Corpus, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Example]:
    """The whole validation stream once: every token but the first is a target with weight 1 exactly once.

    Rows are non-overlapping windows of T targets. The last row and the last batch are padded with id 0 at weight 0, so
    that all batches have one shape. Over all processes the weights sum to `len(corpus.validation) - 1`.

    Args and raises: as in `batches`.
    """
    own = _process_slice(batch_size, process_index, process_count)
    stream, length = corpus.validation, corpus.length
    targets = len(stream) - 1
    for first in range(0, targets, batch_size * length):
        begin = first + own.start * length
        wanted = (own.stop - own.start) * length
        tokens = np.zeros(wanted + 1, stream.dtype)
        real = stream[begin : begin + wanted + 1]
        tokens[: len(real)] = real
        batch = _examples(corpus, _rows(tokens, np.arange(0, wanted, length), length))
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
        batch = causal(_rows(padded, begin, length))
        fresh = (places >= length - stride) | (begin == 0)[:, None]
        real = np.arange(batch_size) < len(starts) - first
        batch["weights"] = (fresh & (begin[:, None] + places < targets) & real[:, None]).astype(np.float32)
        yield batch


def pipeline_speed(corpus: Corpus, *, batch_size: int, seed: int = 0, seconds: float = 1.0) -> float:
    """Tokens per second that `batches` alone delivers to one consumer, measured for about `seconds`."""
    pipeline = batches(corpus, batch_size=batch_size, seed=seed)
    next(pipeline)  # the first touch of the file is not the pipeline's speed
    begin, tokens = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        tokens += next(pipeline)["targets"].size
    return tokens / elapsed


def _rows(stream: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """The tokens `[starts, starts + length]` of a stream: `[N] -> [N, T + 1]`, in one gather."""
    return np.lib.stride_tricks.sliding_window_view(stream, length + 1)[starts]


def _examples(corpus: Corpus, rows: np.ndarray) -> Example:
    return causal(rows, end=corpus.tokenizer.opening, segments=corpus.segments)


def _process_slice(batch_size: int, process_index: int, process_count: int) -> slice:
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must lie in [0, process_count={process_count})")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} must be a positive multiple of process_count={process_count}")
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)
