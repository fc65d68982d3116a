"""What a masked language model must beat: counts of tokens, and of pairs of neighbours, of the training stream.

A baseline is asked for the log-probability of a target given the true token to its left, which a model that reads in
both directions often sees, too. Its sizes are V and the number of different pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from transformer.data import Example

DISCOUNT = 0.75
NONE = -1  # the left neighbour of a row's first token


@dataclasses.dataclass(frozen=True, eq=False)
class Unigram:
    """`p(w) = (c(w) + 1) / (N + V)`: tokens by how often they come."""

    log_probabilities: np.ndarray  # [V] float64
    likeliest: int

    def log_probability(self, left: np.ndarray, target: np.ndarray) -> np.ndarray:
        """In nats, of targets `[...]`; their left neighbours do not matter."""
        del left
        return self.log_probabilities[target]

    def best(self, left: np.ndarray) -> np.ndarray:
        """The likeliest target after each left neighbour: `[...]`."""
        return np.full(np.shape(left), self.likeliest)


@dataclasses.dataclass(frozen=True, eq=False)
class Bigram:
    """`p(w | v) = max(c(v, w) - d, 0) / c(v) + d * m(v) / c(v) * p(w)` with `d = DISCOUNT`.

    `c(v)` counts the tokens that follow v, `m(v)` the different ones, and `p(w)` is the unigram's, which is all there
    is for a v that nothing follows. Absolute discounting (Ney, Essen and Kneser 1994), interpolated (Chen and Goodman
    1998, section 2.6).
    """

    unigram: Unigram
    pairs: np.ndarray  # [pairs] int64, rising: v * V + w
    discounted: np.ndarray  # [pairs] float64: (c(v, w) - d) / c(v)
    rest: np.ndarray  # [V] float64: d * m(v) / c(v), the share of the unigram
    successors: np.ndarray  # [V]: the likeliest w after each v

    def log_probability(self, left: np.ndarray, target: np.ndarray) -> np.ndarray:
        """In nats, of targets `[...]` given their left neighbours `[...]`, which may be `NONE`."""
        left, target = np.asarray(left, np.int64), np.asarray(target, np.int64)
        code = left * len(self.rest) + target  # below 0, so never found, for NONE
        place = np.minimum(np.searchsorted(self.pairs, code), len(self.pairs) - 1)
        seen = np.where(self.pairs[place] == code, self.discounted[place], 0.0)
        rest = np.where(left == NONE, 1.0, self.rest[left])
        return np.log(seen + rest * np.exp(self.unigram.log_probabilities[target]))

    def best(self, left: np.ndarray) -> np.ndarray:
        """The likeliest target after each left neighbour, which may be `NONE`: `[...]`."""
        return np.where(np.asarray(left) == NONE, self.unigram.likeliest, self.successors[left])


def unigram(train: np.ndarray, vocab: int) -> Unigram:
    """The unigram baseline of a stream.

    Args:
      train: `[tokens]` integers below `vocab`.
      vocab: V.

    Raises:
      ValueError: if the stream has fewer than two tokens, or one that is not below `vocab`.
    """
    _check(train, vocab)
    counts = np.bincount(train, minlength=vocab)
    return Unigram(np.log((counts + 1) / (len(train) + vocab)), int(np.argmax(counts)))


def bigram(train: np.ndarray, vocab: int) -> Bigram:
    """The bigram baseline of a stream; arguments and errors as of `unigram`."""
    below = unigram(train, vocab)
    pairs, counts = np.unique(train[:-1].astype(np.int64) * vocab + train[1:], return_counts=True)
    left, right = pairs // vocab, pairs % vocab
    follow = np.bincount(train[:-1], minlength=vocab)  # [V]
    known = follow > 0
    rest = np.divide(DISCOUNT * np.bincount(left, minlength=vocab), follow, where=known, out=np.ones(vocab))
    discounted = (counts - DISCOUNT) / follow[left]
    # Of all that never follow v none is likelier than the unigram's likeliest, which competes with those that do.
    joint = discounted + rest[left] * np.exp(below.log_probabilities[right])
    starts = np.flatnonzero(np.diff(left, prepend=NONE))
    highest = np.repeat(np.maximum.reduceat(joint, starts), np.diff(starts, append=len(left)))
    first = np.flatnonzero(joint == highest)[::-1]  # of equals the lowest id, written last, counts
    successors = np.full(vocab, below.likeliest)
    wins = joint[first] > rest[left[first]] * np.exp(below.log_probabilities[below.likeliest])
    successors[left[first[wins]]] = right[first[wins]]
    return Bigram(below, pairs, discounted, rest, successors)


def measure(train: np.ndarray, vocab: int, rows: Iterable[Example]) -> dict[str, dict[str, float]]:
    """How well the baselines predict the targets that count.

    Args:
      train: `[tokens]` integers below `vocab`: the stream that is counted.
      vocab: V.
      rows: batches with `targets` `[B, T]`, whole rows of true tokens, and `weights` `[B, T]`, how much each position
        counts. The left neighbour of position t is `targets[:, t - 1]`; position 0 has none.

    Returns:
      For "unigram" and "bigram": `accuracy`, the share of targets that are the likeliest token; `loss`, in nats for
      each target; and `perplexity`, its exponential.

    Raises:
      ValueError: as `unigram`, or if a target is not below `vocab`, or no position counts.
    """
    both = bigram(train, vocab)
    baselines = {"unigram": both.unigram, "bigram": both}
    sums = {name: np.zeros(2) for name in baselines}  # of right ones, of nats
    total = 0.0
    for row in rows:
        targets, weights = row["targets"].astype(np.int64), row["weights"].astype(np.float64)
        if targets.size and not 0 <= targets.min() <= targets.max() < vocab:
            raise ValueError(f"a target lies outside 0 to {vocab - 1}: give the vocab of the tokenizer that made them")
        left = np.concatenate([np.full_like(targets[:, :1], NONE), targets[:, :-1]], axis=1)
        total += weights.sum()
        for name, baseline in baselines.items():
            right = baseline.best(left) == targets
            nats = -baseline.log_probability(left, targets)
            sums[name] += [(weights * right).sum(), (weights * nats).sum()]
    if not total:
        raise ValueError("rows has no position with a weight: there is nothing to predict")
    return {name: _report(*(summed / total)) for name, summed in sums.items()}


def _report(accuracy: float, loss: float) -> dict[str, float]:
    return {"accuracy": float(accuracy), "loss": float(loss), "perplexity": float(np.exp(loss))}


def _check(train: np.ndarray, vocab: int) -> None:
    if train.ndim != 1 or len(train) < 2:
        raise ValueError(f"train has shape {train.shape}: a stream of two tokens or more can be counted")
    lowest, highest = train.min(), train.max()
    if lowest < 0 or highest >= vocab:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"train has the id {wrong} for vocab={vocab}: give the vocab of the tokenizer that made it")
