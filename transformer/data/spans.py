"""Span corruption, T5's objective (Raffel et al. 2020, arXiv:1910.10683, sections 3.1.4 and 3.3.4).

Of n tokens, `round(rate n)` are noise, in spans of `span` tokens on average. The encoder reads the rest, with a
sentinel in place of each span, and the decoder predicts the spans, each behind its sentinel:

    row      the cat sat on the mat and slept
    source   the <0> on the mat <1> <end>
    targets  <0> cat sat <1> and slept <end>

A row ends with a span, and no sentinel follows that one, which gives the lengths that T5 was trained with.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from transformer.data.objectives import Example


def noise(tokens: int, *, rate: float, span: float) -> tuple[int, int]:
    """How many of `tokens` are noise, and in how many spans: `round(rate n)` and `round(noise / span)`.

    Both are at least one, and so few that each span has a token before it that is kept.

    Args:
      tokens: n, at least two.
      rate: the share of noise, between 0 and 1.
      span: the mean length of a span, at least 1.

    Raises:
      ValueError: if an argument is out of range.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate={rate} is a share of the tokens: use a number between 0 and 1")
    if not span >= 1:
        raise ValueError(f"span={span} is the mean length of a span: use 1 or more")
    if tokens < 2:
        raise ValueError(f"a row of {tokens} tokens has none to keep beside one of noise: give two or more")
    corrupted = min(max(round(tokens * rate), 1), tokens - 1)
    return corrupted, min(max(round(corrupted / span), 1), tokens - corrupted)


def span_lengths(length: int, *, rate: float, span: float) -> tuple[int, int]:
    """The most tokens that a row may have if its source shall fit into `length`, and the length of its targets.

    Of n tokens with m of noise in k spans, the source has `n - m + k + 1` and the targets have `m + k + 1`.

    Args:
      length: S, of the source, with its end.
      rate, span: as in `noise`.

    Returns:
      n and T.

    Raises:
      ValueError: if an argument is out of range: the shortest source has three tokens.
    """
    shortest = 2
    if length <= shortest:
        raise ValueError(f"length={length}: a source has a token, a sentinel and an end, so use 3 or more")

    def source(tokens: int) -> int:  # never falls as tokens are added
        corrupted, spans = noise(tokens, rate=rate, span=span)
        return tokens - corrupted + spans + 1

    noise(shortest, rate=rate, span=span)  # a share of 1 would have no bound
    candidates = range(shortest, int(length / (1 - rate)) + 1)  # a source is longer than n (1 - rate)
    tokens = candidates[bisect.bisect_right(candidates, length, key=source) - 1]
    return tokens, sum(noise(tokens, rate=rate, span=span)) + 1


def span_corruption(
    row: np.ndarray,
    random: np.random.Generator,
    *,
    sentinels: Sequence[int] | np.ndarray,
    start: int,
    end: int,
    rate: float,
    span: float,
) -> Example:
    """Predict the spans of a row that are noise, from the row without them.

    Spans that are kept and spans of noise alternate, a kept one first. The lengths of either are a composition of their
    sum, all compositions being as likely.

    Args:
      row: `[n]` integers, at least two.
      random: draws the lengths.
      sentinels: ids that stand for spans, in the order of their use, at least as many as spans (see `noise`).
      start: the id that the decoder begins with.
      end: the id that closes a source and a target.
      rate, span: as in `noise`.

    Returns:
      `source` (int32, `[S]`), `inputs`, `targets` (int32, `[T]`) and `weights` (float32, `[T]`, all ones). The lengths
      depend on n alone (see `span_lengths`).

    Raises:
      ValueError: if there are fewer sentinels than spans, `row` has another rank, or as `noise`.
    """
    if row.ndim != 1:
        raise ValueError(f"row has shape {row.shape}, expected [n]: pass one row at a time")
    corrupted, spans = noise(len(row), rate=rate, span=span)
    if len(sentinels) < spans:
        raise ValueError(
            f"{len(sentinels)} sentinels are too few for {spans} spans in {len(row)} tokens: give more sentinels, or "
            "use shorter rows, a lower rate or longer spans"
        )
    marks = np.asarray(sentinels[:spans], np.int32)
    kept, lost = (_composition(total, spans, random) for total in (len(row) - corrupted, corrupted))
    hidden = np.repeat(np.tile([False, True], spans), np.stack([kept, lost], axis=1).ravel())
    row = row.astype(np.int32)
    targets = np.append(np.insert(row[hidden], np.cumsum(lost) - lost, marks), np.int32(end))
    return {
        "source": np.append(np.insert(row[~hidden], np.cumsum(kept), marks), np.int32(end)),
        "inputs": np.append(np.int32(start), targets[:-1]),
        "targets": targets,
        "weights": np.ones(len(targets), np.float32),
    }


def _composition(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """`[parts]` positive integers whose sum is `total`, each such sequence as likely as any other."""
    cuts = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)
