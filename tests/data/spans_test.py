"""Span corruption against published lengths, a plain count, a worked example, and by putting spans back."""

from __future__ import annotations

import collections
import itertools
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from transformer.data import spans

START, END = 0, 1
SENTINELS = range(999, 799, -1)


def corrupt(row, seed=0, *, rate=0.15, span=3.0, sentinels=SENTINELS):
    random = np.random.default_rng(seed)
    return spans.span_corruption(
        np.asarray(row), random, sentinels=sentinels, start=START, end=END, rate=rate, span=span
    )


def counted(tokens, rate, span):
    """Tokens of noise and spans, by the rules one after the other."""
    corrupted = round(tokens * rate)
    corrupted = 1 if corrupted < 1 else tokens - 1 if corrupted > tokens - 1 else corrupted
    number = round(corrupted / span)
    number = 1 if number < 1 else number
    return corrupted, min(number, tokens - corrupted)


def test_published_lengths():
    # What T5 was trained with: rows of 568 tokens for 512 that are read, and 114 that are predicted.
    assert spans.span_lengths(512, rate=0.15, span=3) == (568, 114)
    assert spans.noise(568, rate=0.15, span=3) == (85, 28)


rates = strategies.floats(0.01, 0.95)
means = strategies.floats(1, 12)


@hypothesis.settings(deadline=None)
@hypothesis.given(strategies.integers(3, 300), rates, means)
def test_no_more_tokens_would_fit(length, rate, span):
    tokens, targets = spans.span_lengths(length, rate=rate, span=span)

    def source(tokens):
        corrupted, number = counted(tokens, rate, span)
        return tokens - corrupted + number + 1

    assert source(tokens) <= length
    assert all(source(more) > length for more in range(tokens + 1, tokens + 60))
    assert targets == sum(counted(tokens, rate, span)) + 1


def test_a_row_that_can_be_cut_in_one_way_only():
    # Four tokens, two of noise in two spans: a kept token and one of noise take turns.
    example = corrupt([5, 6, 7, 8], rate=0.5, span=1)
    expected = {
        "source": [5, 999, 7, 998, END],
        "inputs": [START, 999, 6, 998, 8],
        "targets": [999, 6, 998, 8, END],
        "weights": [1, 1, 1, 1, 1],
    }
    assert {name: array.tolist() for name, array in example.items()} == expected
    kinds = {name: array.dtype.name for name, array in example.items()}
    assert kinds.pop("weights") == "float32"
    assert set(kinds.values()) == {"int32"}


def put_back(source, targets):
    """The row, by replacing each sentinel in the source by what follows it in the targets."""
    hidden = collections.defaultdict(list)
    for token in targets[:-1]:
        if token in SENTINELS:
            current = hidden[token]
        else:
            current.append(token)
    row = []
    for token in source[:-1]:
        row += hidden.pop(token) if token in SENTINELS else [token]
    assert not hidden
    return row


@hypothesis.settings(deadline=None)
@hypothesis.given(
    strategies.lists(strategies.integers(2, 500), min_size=2, max_size=120), rates, means, strategies.integers(0, 99)
)
def test_the_row_can_be_put_together_again(row, rate, span, seed):
    example = corrupt(np.array(row, np.uint16), seed, rate=rate, span=span)
    source, targets = example["source"].tolist(), example["targets"].tolist()
    assert put_back(source, targets) == row
    corrupted, number = counted(len(row), rate, span)
    for tokens, others in ((source, len(row) - corrupted), (targets, corrupted)):
        assert [token for token in tokens if token in SENTINELS] == list(SENTINELS[:number])
        assert (len(tokens), tokens[-1]) == (others + number + 1, END)
    assert source[0] not in SENTINELS
    assert targets[0] in SENTINELS
    assert not any(a in SENTINELS and b in SENTINELS for a, b in itertools.pairwise(source))
    assert example["inputs"].tolist() == [START, *targets[:-1]]
    np.testing.assert_array_equal(example["weights"], np.ones(len(targets)))


def test_every_composition_is_as_likely():
    # Eight tokens, four of noise in two spans: three ways to cut either four in two, so nine rows.
    draws, seen = 4500, collections.Counter()
    random = np.random.default_rng(3)
    for _ in range(draws):
        options = {"sentinels": SENTINELS, "start": START, "end": END, "rate": 0.5, "span": 2}
        example = spans.span_corruption(np.arange(2, 10), random, **options)
        seen[tuple(example["source"].tolist())] += 1
    assert len(seen) == 9
    share = 1 / 9
    bound = 5 * math.sqrt(draws * share * (1 - share))  # five standard deviations of each count
    assert all(abs(count - draws * share) < bound for count in seen.values())


def test_equal_seeds_cut_alike():
    row = np.arange(2, 300)
    first, again, other = (corrupt(row, seed)["source"].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_refuses_what_cannot_be_cut():
    with pytest.raises(ValueError, match="1 sentinels are too few for 2 spans in 4 tokens"):
        corrupt([2, 3, 4, 5], rate=0.5, span=1, sentinels=[9])
    with pytest.raises(ValueError, match="a row of 1 tokens has none to keep"):
        corrupt([2])
    with pytest.raises(ValueError, match=r"row has shape \(1, 2\)"):
        corrupt([[2, 3]])
    with pytest.raises(ValueError, match=r"length=2.*use 3 or more"):
        spans.span_lengths(2, rate=0.15, span=3)
    for rate in (0, 1, -0.5, math.nan):
        with pytest.raises(ValueError, match=f"rate={rate} is a share"):
            spans.span_lengths(10, rate=rate, span=3)
    for span in (0.5, math.nan):
        with pytest.raises(ValueError, match=f"span={span} is the mean length"):
            corrupt([2, 3, 4], span=span)
