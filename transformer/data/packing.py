"""Examples of unequal lengths in rows of fixed lengths: several to a row, or one.

An example has one side, its targets, or two: its targets and its source. Lengths are given in this order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from transformer.data.objectives import Example

OPEN = 64  # rows that may still be added to
SIDES = ("targets", "source")


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which examples share a row: row r has `indices[offsets[r] : offsets[r + 1]]`, which is `plan[r]`."""

    indices: np.ndarray  # [N] int64, each example once
    offsets: np.ndarray  # [rows + 1] int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.indices[self.offsets[:-1][row] : self.offsets[1:][row]]


def plan(lengths: np.ndarray, capacity: Sequence[int], seed: int) -> Plan:
    """Puts every example into a row: first fit in a random order, with a bounded number of rows in reach.

    An example goes into the first of `OPEN` rows that has room on every side. If none has, the row with the smallest
    share of room left on a side is closed, and another one is begun in its place.

    Args:
      lengths: `[N, sides]` integers, of examples.
      capacity: of a row, for each side.
      seed: of the order.

    Raises:
      ValueError: if there are no examples, or one is empty on a side or longer than a row.
    """
    lengths, capacity = _check(lengths, capacity)
    order = np.random.default_rng(seed).permutation(len(lengths))
    free = np.tile(capacity, (OPEN, 1))
    number = list(range(OPEN))  # of the row in each place
    rows, begun = np.empty(len(lengths), np.int64), OPEN
    for index, length in zip(order.tolist(), lengths[order], strict=True):
        fits = (free >= length).all(axis=1)
        place = int(fits.argmax())
        if not fits[place]:
            place = int((free / capacity).min(axis=1).argmin())
            free[place] = capacity
            number[place], begun = begun, begun + 1
        free[place] -= length
        rows[index] = number[place]
    counts = np.bincount(rows)
    offsets = np.append(0, np.cumsum(counts[counts > 0]))
    return Plan(order[np.argsort(rows[order], kind="stable")], offsets)


def fill(rows: Plan, lengths: np.ndarray, capacity: Sequence[int]) -> np.ndarray:
    """The share of places that hold tokens, for each side: `[sides]`; arguments as in `plan`."""
    return np.asarray(lengths).sum(axis=0) / (len(rows) * np.asarray(capacity))


def pack(examples: Sequence[Example], lengths: Sequence[int]) -> Example:
    """One row that holds several examples, one after the other.

    Args:
      examples: not padded, all with the same arrays.
      lengths: of the row: T, or T and S if the examples have a source.

    Returns:
      The arrays of the examples, `[T]`, and `source` as `[S]`, padded with zeros (id 0, weight 0, no prefix); also
      `segments` and `positions`, and for a source `source_segments` and `source_positions`: the number of the example,
      from 1, or 0 in padding, and the place in it (int32).

    Raises:
      ValueError: if there are no examples, they do not fit, or `lengths` has not one length for each side of theirs.
    """
    if not examples:
        raise ValueError("examples is empty: a row holds at least one")
    sides = _sides(examples[0], lengths)
    packed = {}
    for name in examples[0]:
        packed[name] = _padded(np.concatenate([example[name] for example in examples]), lengths, name)
    for front, side in zip(("", "source_"), sides, strict=False):
        sizes = [len(example[side]) for example in examples]
        numbers = np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)
        places = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        packed[f"{front}segments"] = _padded(numbers, lengths, side)
        packed[f"{front}positions"] = _padded(places, lengths, side)
    return packed


def pad(example: Example, lengths: Sequence[int]) -> Example:
    """One example in a row of its own, padded with zeros.

    What is added to the targets has weight 0 and needs no mask, because the decoder does not look ahead.

    Args:
      example: not padded.
      lengths: of the row: T, or T and S if the example has a source.

    Returns:
      The arrays of the example, `[T]`, and `source` as `[S]` with `source_mask`, `[S]` booleans, true for its tokens.

    Raises:
      ValueError: if the example does not fit, or `lengths` has not one length for each of its sides.
    """
    sides = _sides(example, lengths)
    padded = {name: _padded(array, lengths, name) for name, array in example.items()}
    if "source" in sides:
        padded["source_mask"] = np.arange(lengths[1]) < len(example["source"])
    return padded


def _check(lengths: np.ndarray, capacity: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    lengths, capacity = np.asarray(lengths, np.int64), np.asarray(capacity, np.int64)
    if lengths.ndim != 2 or capacity.shape != lengths.shape[1:]:
        raise ValueError(f"lengths has shape {lengths.shape}, expected [N, sides] with capacity {capacity.tolist()}")
    if not len(lengths):
        raise ValueError("there are no examples to pack: lengths is empty")
    wrong = np.argwhere((lengths < 1) | (lengths > capacity))
    if len(wrong):
        example, side = wrong[0].tolist()
        raise ValueError(
            f"example {example} has {lengths[example, side]} tokens on side {side}, and a row has room for 1 to "
            f"{capacity[side]}: leave it out, cut it, or use longer rows"
        )
    return lengths, capacity


def _sides(example: Example, lengths: Sequence[int]) -> tuple[str, ...]:
    sides = tuple(side for side in SIDES if side in example)
    if len(lengths) != len(sides):
        raise ValueError(f"lengths={tuple(lengths)} must have one length for each of {' and '.join(sides)}")
    return sides


def _padded(array: np.ndarray, lengths: Sequence[int], name: str) -> np.ndarray:
    """`array` and zeros, as long as a row is on the side that `name` belongs to."""
    length = lengths[SIDES.index(name) if name in SIDES else 0]
    if len(array) > length:
        raise ValueError(
            f"{name} of length {len(array)} does not fit into a row of {length}: give fewer examples or longer rows"
        )
    out = np.zeros(length, array.dtype)
    out[: len(array)] = array
    return out
