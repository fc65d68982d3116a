"""What all batches have in common: the only state is the step, and each process holds its own rows."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from transformer.data.objectives import Example

VALIDATION = 2**32  # in the place of a seed: no seed of training is as large


class Batches(abc.ABC):
    """An endless iterator over training batches, whose only state is `step`.

    The global batch at a step depends on the corpus, the batch's size and `seed` alone; process p of P holds its rows
    `p B / P` to `(p + 1) B / P`.
    """

    fill: float = 1.0  # the share of places that hold tokens

    def __init__(self, batch_size: int, seed: int, start: int, process_index: int, process_count: int) -> None:
        process_slice(batch_size, process_index, process_count)
        if start < 0:
            raise ValueError(f"start={start}: steps count from 0")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: use a seed from 0 to 2**32 - 1")
        self.step = start
        self._batch_size, self._seed = batch_size, seed
        self._process = {"process_index": process_index, "process_count": process_count}

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Example:
        batch = self.batch_at(self.step)
        self.step += 1
        return batch

    @abc.abstractmethod
    def batch_at(self, step: int) -> Example:
        """The batch of a step, without moving the iterator: arrays `[B / P, T]`, named as in `objectives`."""

    def _own(self, rows: int) -> slice:
        return process_slice(rows, **self._process)


def process_slice(rows: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that a process holds."""
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must lie in [0, process_count={process_count})")
    if rows < 1 or rows % process_count:
        raise ValueError(f"batch_size={rows} must be a positive multiple of process_count={process_count}")
    share = rows // process_count
    return slice(process_index * share, (process_index + 1) * share)


def shuffled(rows: int, seed: int) -> grain.MapDataset:
    """The endless order of rows: each once an epoch, in another order every time."""
    return grain.MapDataset.range(rows).seed(seed).shuffle().repeat(reseed_each_epoch=True)


def generator(seed: int, index: int) -> np.random.Generator:
    """The randomness of one row: row `index` of the endless order, so that every visit draws anew."""
    return np.random.default_rng((seed, index))


def stack(rows: Sequence[Example]) -> Example:
    """Rows of equal shapes as one batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def once(rows: int, batch_size: int, own: slice, make: Callable[[np.ndarray], Example]) -> Iterator[Example]:
    """Every row once, in order; the last batch is filled up with repeats at weight 0.

    Args:
      make: from the indices of rows to a batch.
    """
    for first in range(0, rows, batch_size):
        indices = np.arange(first, first + batch_size)[own]
        batch = make(indices % rows)
        batch["weights"] = batch["weights"] * (indices < rows)[:, None].astype(np.float32)
        yield batch
