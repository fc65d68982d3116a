"""From a row of token ids to what a model is trained on. Where chance decides, the caller's generator draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Example = dict[str, np.ndarray]

MASKED, KEPT = 0.8, 0.1  # of the tokens that are predicted; the rest become another token


def causal(row: np.ndarray, *, end: int | None = None, segments: bool = False) -> Example:
    """Predict each token from those before it: `inputs[t] = row[t]`, `targets[t] = row[t + 1]`.

    With `segments`, every `end` token starts a document, and a model given `segments` and `positions` attends within a
    document only. No weight is zero for it: the first real token of a document is predicted from that document's `end`,
    and an `end` that is a target is predicted from the document which it closes.

    Args:
      row: `[..., T + 1]` integers.
      end: the id that stands before every document; needed for `segments`.
      segments: whether to add `segments` and `positions`.

    Returns:
      `inputs`, `targets` (int32) and `weights` (float32, all ones), each `[..., T]`; when asked also
      `segments`, how many `end` tokens the row has had so far, and `positions`, the distance from the last one or from
      the start of the row (int32, `[..., T]`).

    Raises:
      ValueError: if the row has nothing to predict, or `segments` comes without `end`.
    """
    if row.ndim < 1 or row.shape[-1] < 2:
        raise ValueError(f"row has shape {row.shape}, expected [..., T + 1] with T >= 1: pass at least two tokens")
    row = row.astype(np.int32)
    inputs, targets = np.ascontiguousarray(row[..., :-1]), np.ascontiguousarray(row[..., 1:])
    example = {"inputs": inputs, "targets": targets, "weights": np.ones(inputs.shape, np.float32)}
    return example | _documents(inputs, end) if segments else example


def prefix(row: np.ndarray, random: np.random.Generator, *, end: int | None = None, segments: bool = False) -> Example:
    """Read the beginning in both directions, and predict the rest: a prefix language model.

    A document is the whole row, or, with `segments`, the tokens from one `end` up to the next. Its inputs and the last
    token that they predict are cut in two between any two neighbours, each place as likely. What is before the cut is
    its `prefix`, at least the first input, and the targets after the cut count, at least the last. The first of those
    is predicted from the last token of the prefix, so no prefix holds a target that counts.

    T5's prefix objective: Raffel et al. 2020, arXiv:1910.10683, section 3.2; Liu et al. 2018, arXiv:1801.10198.

    Args:
      row: `[T + 1]` integers.
      random: draws the cuts.
      end, segments: as in `causal`.

    Returns:
      What `causal` returns, with weight 0 for the targets that lie in a prefix, and `prefix`, `[T]` booleans: the
      inputs that every token of their document may attend to.

    Raises:
      ValueError: as `causal`, or if `row` has more axes.
    """
    if row.ndim != 1:
        raise ValueError(f"row has shape {row.shape}, expected [T + 1]: pass one row at a time")
    example = causal(row, end=end, segments=segments)
    length = len(example["inputs"])
    starts = np.flatnonzero(example["positions"] == 0) if segments else np.zeros(1, np.int64)
    lengths = np.diff(starts, append=length)
    cuts = np.repeat(starts + random.integers(1, lengths + 1), lengths)  # [T], of each token's own document
    index = np.arange(length)
    return example | {"prefix": index < cuts, "weights": (index + 1 >= cuts).astype(np.float32)}


def masked(
    row: np.ndarray,
    random: np.random.Generator,
    *,
    mask: int,
    vocab: int,
    special: Sequence[int] | np.ndarray = (),
    rate: float = 0.15,
    words: np.ndarray | None = None,
    end: int | None = None,
    segments: bool = False,
) -> Example:
    """Predict tokens that are hidden, from those on both sides: BERT's masked language model.

    Of n tokens that may be hidden, `max(1, round(rate n))` are chosen. Each of them becomes `mask` with probability
    0.8, an id that is not special with probability 0.1, and stays as it is otherwise, whatever becomes of the others.

    With `words`, whole words are chosen, in random order, each unless more tokens than that number would be chosen with
    it. So there may be fewer, and none if every word is longer than the number.

    Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.1; whole words are a later addition of its authors.

    Args:
      row: `[T]` integers.
      random: draws everything.
      mask: the id that hides a token.
      vocab: V, how many ids there are.
      special: ids that are no text: neither hidden nor put in place of others. `mask` and `end` never are.
      rate: the share of tokens that are chosen.
      words: `[T]` integers, equal for the tokens of one word; None chooses tokens by themselves.
      end, segments: as in `causal`.

    Returns:
      `inputs` and `targets` (int32) and `weights` (float32, 1 for the tokens that were chosen), each `[T]`, where
      `targets` is the row; when asked also `segments` and `positions` as in `causal`. If nothing may be hidden, all
      weights are 0.

    Raises:
      ValueError: if `row` is not of shape `[T]` or `words` is of another, `rate` is not between 0 and 1, a special id
        is not in the vocabulary or all are special, or `segments` comes without `end`.
    """
    if row.ndim != 1 or not len(row):
        raise ValueError(f"row has shape {row.shape}, expected [T] with T >= 1: pass one row at a time")
    if words is not None and words.shape != row.shape:
        raise ValueError(f"words has shape {words.shape}, expected {row.shape}: give the word of each token")
    if not 0 < rate < 1:
        raise ValueError(f"rate={rate} is a share of the tokens: use a number between 0 and 1")
    special = _special(special, mask, end, vocab)
    targets = row.astype(np.int32)
    chosen = np.flatnonzero(~np.isin(targets, special))
    wanted = max(1, round(rate * len(chosen)))
    if words is not None:
        chosen = chosen[_whole(words[chosen], random, wanted)]
    elif len(chosen):
        chosen = random.choice(chosen, wanted, replace=False)
    inputs, weights = targets.copy(), np.zeros(len(row), np.float32)
    weights[chosen] = 1
    chance = random.random(len(chosen))
    inputs[chosen[chance < MASKED]] = mask
    replaced = chosen[chance >= MASKED + KEPT]
    inputs[replaced] = _ordinary(random, len(replaced), special, vocab)
    example = {"inputs": inputs, "targets": targets, "weights": weights}
    return example | _documents(targets, end) if segments else example


def sequence_to_sequence(source: np.ndarray, target: np.ndarray, *, start: int, end: int) -> Example:
    """Predict each token of a target from a source and the target's true tokens before it; nothing is padded.

    Args:
      source, target: `[S - 1]` and `[T - 1]` integers, either of which may be empty.
      start: the id that the decoder begins with.
      end: the id that closes a source and a target.

    Returns:
      `source`, which is the source and `end`; `inputs`, which is `start` and the target; `targets`, which is the target
      and `end` (int32); `weights` (float32, all ones). `source` is `[S]`, the others are `[T]`.

    Raises:
      ValueError: if `source` or `target` has another rank.
    """
    for name, ids in (("source", source), ("target", target)):
        if ids.ndim != 1:
            raise ValueError(f"{name} has shape {ids.shape}, expected one axis: pass one pair at a time")
    return {
        "source": np.append(source, end).astype(np.int32),
        "inputs": np.append(start, target).astype(np.int32),
        "targets": np.append(target, end).astype(np.int32),
        "weights": np.ones(len(target) + 1, np.float32),
    }


def _documents(tokens: np.ndarray, end: int | None) -> Example:
    """`segments` and `positions` of tokens `[..., T]`, where each `end` starts a document."""
    if end is None:
        raise ValueError("segments=True needs end, the id that starts a document: use a tokenizer with an end token")
    starts = tokens == end
    index = np.arange(tokens.shape[-1], dtype=np.int32)
    first = np.maximum.accumulate(np.where(starts, index, 0), axis=-1).astype(np.int32)
    return {"segments": np.cumsum(starts, axis=-1, dtype=np.int32), "positions": index - first}


def _special(special: Sequence[int] | np.ndarray, mask: int, end: int | None, vocab: int) -> np.ndarray:
    """All ids that are no text, in order, each once; raises ValueError unless others are left in the vocabulary."""
    ids = np.unique(np.array([*special, mask, *([] if end is None else [end])], np.int64))
    if ids[0] < 0 or ids[-1] >= vocab:
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        raise ValueError(f"the special id {wrong} is not in the vocabulary: use ids from 0 to vocab - 1 = {vocab - 1}")
    if len(ids) == vocab:
        raise ValueError(f"all vocab={vocab} ids are special: leave some for text")
    return ids


def _whole(words: np.ndarray, random: np.random.Generator, wanted: int) -> np.ndarray:
    """Which tokens are chosen, given the word of each `[n]`: booleans, alike for a word, at most `wanted` true."""
    _, word, sizes = np.unique(words, return_inverse=True, return_counts=True)
    chosen, left, sizes = np.zeros(len(sizes), bool), wanted, sizes.tolist()
    for index in random.permutation(len(sizes)).tolist():
        if sizes[index] <= left:
            chosen[index] = True
            left -= sizes[index]
    return chosen[word]


def _ordinary(random: np.random.Generator, count: int, special: np.ndarray, vocab: int) -> np.ndarray:
    """Ids `[count]` that are not special, each of those as likely as any other."""
    ranks = random.integers(vocab - len(special), size=count)
    below = special - np.arange(len(special))  # how many ordinary ids are below each special one
    return ranks + np.searchsorted(below, ranks, side="right")
