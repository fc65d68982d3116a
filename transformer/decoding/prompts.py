"""From what callers write, lists or arrays of token ids, to padded arrays whose shapes few programs share."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

Rows = jax.Array | np.ndarray | Sequence[int] | Sequence[Sequence[int]]


def pad(name: str, rows: Rows, vocab: int, lengths: Rows | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Token ids in one array, padded on the right with zeros, and the length of each row.

    Args:
      name: what errors call it.
      rows: `[B, T]` integers, a sequence of rows of any lengths, or one row.
      vocab: every real id is at least 0 and below this.
      lengths: `[B]` integers, the real ids of each row; None: all of them.

    Returns:
      `[B, T]` int32 and `[B]` int32.

    Raises:
      ValueError: if rows are empty, ids are not integers or not in the vocabulary, or lengths do not fit.
    """
    ragged = [_row(name, row) for row in _split(name, rows)]
    widths = np.asarray([len(row) for row in ragged], np.int32)
    lengths = widths if lengths is None else _lengths(name, lengths, widths)
    if not lengths.all():
        raise ValueError(f"{name} has an empty row, row {int(np.argmin(lengths))}: each row needs at least one token")
    out = np.zeros((len(ragged), lengths.max()), np.int32)
    for row, (ids, length) in enumerate(zip(ragged, lengths, strict=True)):
        ids = ids[:length]
        wrong = ids[(ids < 0) | (ids >= vocab)]
        if wrong.size:
            raise ValueError(f"{name} row {row} holds the id {wrong[0]}, outside the model's vocabulary of {vocab}")
        out[row, :length] = ids
    return out, lengths


def widen(tokens: np.ndarray, multiple: int, most: int | None) -> np.ndarray:
    """`[B, T]` with zeros up to the next length that `multiple` divides, or up to `most` (None: no limit)."""
    return np.pad(tokens, ((0, 0), (0, round_up(tokens.shape[1], multiple, most) - tokens.shape[1])))


def round_up(length: int, multiple: int, most: int | None) -> int:
    """The next number that `multiple` divides, or `most` where that is smaller."""
    rounded = -(-length // multiple) * multiple
    return rounded if most is None else max(length, min(rounded, most))


def _split(name: str, rows: Rows) -> list:
    """The rows, each still as it was written; a single row becomes a list of one."""
    if isinstance(rows, jax.core.Tracer):
        raise ValueError(f"{name} is traced: generate and stream compile what they need, call them outside jit")
    if isinstance(rows, str):
        raise ValueError(f"{name} is text: encode it with the model's tokenizer first")
    rows = np.asarray(rows) if hasattr(rows, "ndim") else rows
    if len(rows) == 0:
        raise ValueError(f"{name} is empty: give at least one row of at least one token")
    ranks = {np.ndim(row) for row in rows}
    if ranks == {0}:
        return [rows]
    if ranks != {1}:
        raise ValueError(f"{name} must be token ids [B, T], a list of rows or one row, not of shape {_shape(rows)}")
    return list(rows)


def _shape(rows) -> str:
    return str(rows.shape) if hasattr(rows, "shape") else "rows of different ranks"


def _row(name: str, row) -> np.ndarray:
    row = np.asarray(row)
    if row.size and not np.issubdtype(row.dtype, np.integer):
        raise ValueError(f"{name} must hold integer token ids, not {row.dtype}")
    return row


def _lengths(name: str, lengths: Rows, widths: np.ndarray) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.shape != widths.shape or not np.issubdtype(lengths.dtype, np.integer):
        expected = f"one integer for each of the {len(widths)} rows"
        raise ValueError(f"lengths must be {expected}, not {lengths.dtype} of shape {lengths.shape}")
    wrong = np.flatnonzero((lengths < 1) | (lengths > widths))
    if wrong.size:
        row = wrong[0]
        raise ValueError(f"lengths[{row}]={lengths[row]}, but row {row} of {name} has 1 to {widths[row]} tokens to use")
    return lengths.astype(np.int32)
