"""Rows of ids to examples, against worked examples, a loop over tokens, and by going back."""

from __future__ import annotations

import collections
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from transformer.data import causal
from transformer.data.objectives import masked, prefix, sequence_to_sequence

END = 9
MASK = 8


def within(count, trials, share):
    """Whether a count is within five standard deviations of a binomial distribution."""
    return abs(count - trials * share) < 5 * math.sqrt(trials * share * (1 - share))


def test_a_worked_example():
    example = causal(np.array([4, 9, 5, 6, 9, 7], np.uint16), end=END, segments=True)
    expected = {
        "inputs": [4, 9, 5, 6, 9],
        "targets": [9, 5, 6, 9, 7],
        "weights": [1, 1, 1, 1, 1],
        "segments": [0, 1, 1, 1, 2],
        "positions": [0, 0, 1, 2, 0],
    }
    assert {name: array.tolist() for name, array in example.items()} == expected
    kinds = {name: array.dtype.name for name, array in example.items()}
    assert kinds.pop("weights") == "float32"
    assert set(kinds.values()) == {"int32"}


def test_without_segments_there_are_three_arrays():
    assert set(causal(np.arange(4), end=END)) == {"inputs", "targets", "weights"}


rows = strategies.integers(1, 12).flatmap(
    lambda length: strategies.lists(
        strategies.lists(strategies.integers(0, END), min_size=length + 1, max_size=length + 1), min_size=1, max_size=4
    )
)


@hypothesis.settings(deadline=None)
@hypothesis.given(rows)
def test_a_row_can_be_rebuilt_and_its_documents_told_apart(drawn):
    row = np.array(drawn)
    example = causal(row, end=END, segments=True)
    np.testing.assert_array_equal(np.concatenate([example["inputs"], example["targets"][:, -1:]], axis=1), row)
    for tokens, segments, positions in zip(row, example["segments"], example["positions"], strict=True):
        segment, position = 0, -1
        for index, token in enumerate(tokens[:-1]):
            starts = token == END
            segment, position = segment + starts, 0 if starts else position + 1
            assert (segments[index], positions[index]) == (segment, position)


def test_every_real_token_is_predicted_from_its_own_document():
    example = causal(np.array([9, 1, 2, 9, 3, 9, 4]), end=END, segments=True)
    owner = {1: 1, 2: 1, 3: 2, 4: 3}
    predicted = {
        int(target): int(segment)
        for target, segment, weight in zip(example["targets"], example["segments"], example["weights"], strict=True)
        if target != END and weight == 1
    }
    assert predicted == owner


def test_refuses_a_row_without_a_target():
    with pytest.raises(ValueError, match=r"row has shape \(2, 1\).*at least two tokens"):
        causal(np.zeros((2, 1), np.int32))


def test_refuses_segments_without_an_end():
    with pytest.raises(ValueError, match="segments=True needs end"):
        causal(np.arange(4), segments=True)


def test_prefixes_of_two_documents():
    # The first document is cut after its end token or after 4, the second, one token long, after that.
    row, seen = np.array([9, 4, 9, 5], np.uint16), collections.Counter()
    random = np.random.default_rng(0)
    for _ in range(1000):
        example = prefix(row, random, end=END, segments=True)
        seen[tuple(example.pop("prefix").tolist()), tuple(example.pop("weights").tolist())] += 1
        assert {name: array.tolist() for name, array in example.items()} == {
            "inputs": [9, 4, 9],
            "targets": [4, 9, 5],
            "segments": [1, 1, 2],
            "positions": [0, 1, 0],
        }
    assert set(seen) == {((True, False, True), (1, 1, 1)), ((True, True, True), (0, 1, 1))}
    assert all(within(count, 1000, 1 / 2) for count in seen.values())


def test_a_row_without_documents_is_cut_anywhere():
    random, seen = np.random.default_rng(1), collections.Counter()
    for _ in range(5000):
        example = prefix(np.array([5, END, 6, 7, END, 4]), random)
        assert set(example) == {"inputs", "targets", "weights", "prefix"}
        length = int(example["prefix"].sum())
        seen[length] += 1
        assert example["prefix"].tolist() == [True] * length + [False] * (5 - length)
        assert example["weights"].tolist() == [0] * (length - 1) + [1] * (6 - length)
        assert (example["prefix"].dtype, example["weights"].dtype) == (bool, np.float32)
    assert sorted(seen) == [1, 2, 3, 4, 5]
    assert all(within(count, 5000, 1 / 5) for count in seen.values())


documents = strategies.lists(strategies.sampled_from([END, 1, 2, 3]), min_size=2, max_size=14)


@hypothesis.settings(deadline=None)
@hypothesis.given(documents, strategies.booleans(), strategies.integers(0, 999))
def test_no_target_that_counts_is_seen(drawn, segments, seed):
    row = np.array(drawn)
    example = prefix(row, np.random.default_rng(seed), end=END, segments=segments)
    length = len(row) - 1
    np.testing.assert_array_equal(np.append(example["inputs"], example["targets"][-1:]), row)
    index = np.arange(length)
    visible = (index <= index[:, None]) | example["prefix"]
    group = example.get("segments", np.zeros(length))
    visible &= group == group[:, None]
    # What a token attends to attends in turn, one layer below.
    reached = np.linalg.matrix_power(visible.astype(object), length) > 0
    for query in range(length):
        own = group == group[query]
        cut = int(example["prefix"][own].sum())
        assert 1 <= cut <= own.sum()
        place = query - np.flatnonzero(own)[0]
        assert example["prefix"][query] == (place < cut)
        assert example["weights"][query] == (place + 1 >= cut)
        if example["weights"][query] and query + 1 < length:
            assert not reached[query, query + 1]
    assert all(example["weights"][group == one].any() for one in set(group))


SPECIAL = (7, 0)  # with MASK and END; text is 1 to 6
VOCAB = 10


def hide(row, seed=0, **options):
    options = {"mask": MASK, "vocab": VOCAB, "special": SPECIAL, "end": END} | options
    return masked(np.asarray(row, np.uint16), np.random.default_rng(seed), **options)


def test_the_only_token_that_may_be_hidden():
    seen = collections.Counter()
    for seed in range(1000):
        example = hide([7, 3, END, 0, MASK], seed, segments=True)
        seen[int(example["inputs"][1])] += 1
        example["inputs"][1] = 0
        assert {name: array.tolist() for name, array in example.items()} == {
            "inputs": [7, 0, END, 0, MASK],
            "targets": [7, 3, END, 0, MASK],
            "weights": [0, 1, 0, 0, 0],
            "segments": [0, 0, 1, 1, 1],
            "positions": [0, 1, 0, 1, 2],
        }
        kinds = {name: array.dtype.name for name, array in example.items()}
        assert kinds.pop("weights") == "float32"
        assert set(kinds.values()) == {"int32"}
    assert set(seen) == {MASK, 1, 2, 3, 4, 5, 6}


@hypothesis.settings(deadline=None)
@hypothesis.given(
    strategies.lists(strategies.integers(0, VOCAB - 1), min_size=1, max_size=60),
    strategies.floats(0.01, 0.99),
    strategies.integers(0, 999),
)
def test_hidden_tokens_are_put_back(drawn, rate, seed):
    row = np.array(drawn)
    example = hide(row, seed, rate=rate)
    assert set(example) == {"inputs", "targets", "weights"}
    chosen = example["weights"] == 1
    np.testing.assert_array_equal(np.where(chosen, example["targets"], example["inputs"]), row)
    np.testing.assert_array_equal(example["targets"], row)
    text = (row >= 1) & (row <= 6)
    assert not chosen[~text].any()
    assert chosen.sum() == (max(1, round(rate * text.sum())) if text.any() else 0)
    assert set(example["weights"]) <= {0, 1}
    assert set(example["inputs"][chosen]) <= {MASK, 1, 2, 3, 4, 5, 6}


def test_how_often_tokens_are_hidden_replaced_and_kept():
    vocab = 1000
    special = (0, 1, 2, 500, 999)
    row = np.full(200_000, 700)
    example = masked(row, np.random.default_rng(4), mask=3, vocab=vocab, special=special, rate=0.5)
    inputs = example["inputs"][example["weights"] == 1]
    ordinary = vocab - 6
    assert len(inputs) == 100_000
    assert within(int((inputs == 3).sum()), 100_000, 0.8)
    assert within(int((inputs == 700).sum()), 100_000, 0.1 + 0.1 / ordinary)
    others = inputs[(inputs != 3) & (inputs != 700)]
    assert set(range(vocab)) - set(others.tolist()) <= {*special, 3, 700}
    counts = np.bincount(others, minlength=vocab)
    assert not counts[[*special, 3]].any()
    # About ten of each id. With that many ids, the sum of squares is normal with this variance about its mean.
    expected = len(others) / (ordinary - 1)
    statistic = ((np.delete(counts, [*special, 3, 700]) - expected) ** 2 / expected).sum()
    assert abs(statistic - (ordinary - 2)) < 5 * math.sqrt(2 * (ordinary - 2))


def test_every_token_is_chosen_as_often_and_by_itself():
    row, random = np.full(20, 3), np.random.default_rng(5)
    draws = np.array([masked(row, random, mask=1, vocab=9, rate=0.25)["weights"] for _ in range(4000)])
    assert all(within(int(count), 4000, 5 / 20) for count in draws.sum(axis=0))
    pairs = draws.T @ draws
    neighbours = np.diagonal(pairs, 1)
    assert all(within(int(count), 4000, 5 / 20 * 4 / 19) for count in neighbours)


def test_a_word_that_would_be_too_much_is_left_out():
    # Three of four tokens: either the word of three, or the word of one, after which there is no room for the other.
    seen = {tuple(hide([1, 2, 3, 4], s, rate=0.75, words=np.array([5, 5, 5, 6]))["weights"]) for s in range(50)}
    assert seen == {(1, 1, 1, 0), (0, 0, 0, 1)}
    # A word of one token is taken after one of three did not fit.
    seen = {tuple(hide([1, 2, 3, 4], s, rate=0.4, words=np.array([5, 5, 5, 6]))["weights"]) for s in range(50)}
    assert seen == {(0, 0, 0, 1)}
    assert not hide([1, 2, 3, 4], rate=0.4, words=np.zeros(4, int))["weights"].any()


@hypothesis.settings(deadline=None)
@hypothesis.given(
    strategies.lists(strategies.integers(1, 6), min_size=1, max_size=20),
    strategies.floats(0.05, 0.95),
    strategies.integers(0, 999),
)
def test_words_are_hidden_whole(sizes, rate, seed):
    words = np.repeat(np.arange(len(sizes)), sizes)
    row = np.random.default_rng(seed).integers(1, 7, len(words))
    weights = hide(row, seed, rate=rate, words=words)["weights"]
    chosen = [weights[words == word] for word in range(len(sizes))]
    assert all(one.min() == one.max() for one in chosen)
    left = max(1, round(rate * len(words))) - int(weights.sum())
    # As many as were wanted, or so close to it that none of the other words would fit.
    assert 0 <= left < min([size for size, one in zip(sizes, chosen, strict=True) if not one[0]], default=1)


def test_tokens_of_a_word_are_hidden_each_by_itself():
    words, row, counts = np.zeros(2, int), np.array([1, 2]), collections.Counter()
    for seed in range(2000):
        counts[tuple((hide(row, seed, rate=0.9, words=words)["inputs"] == MASK).tolist())] += 1
    assert within(counts[True, True], 2000, 0.8**2)
    assert within(counts[True, False], 2000, 0.8 * 0.2)


def test_special_tokens_of_a_word_stay():
    example = hide([1, 7, 2, 3], rate=0.6, words=np.array([0, 0, 0, 0]))
    assert not example["weights"].any()  # three tokens, and two are wanted
    example = hide([1, 7, 2], rate=0.9, words=np.array([0, 0, 0]))
    assert example["weights"].tolist() == [1, 0, 1]


def test_a_source_and_its_target():
    example = sequence_to_sequence(np.array([4, 5], np.uint16), np.array([6], np.uint16), start=0, end=END)
    expected = {"source": [4, 5, END], "inputs": [0, 6], "targets": [6, END], "weights": [1, 1]}
    assert {name: array.tolist() for name, array in example.items()} == expected
    kinds = {name: array.dtype.name for name, array in example.items()}
    assert kinds == {"source": "int32", "inputs": "int32", "targets": "int32", "weights": "float32"}
    empty = sequence_to_sequence(np.array([], np.int32), np.array([], np.int32), start=0, end=END)
    assert [empty[name].tolist() for name in ("source", "inputs", "targets")] == [[END], [0], [END]]


def test_refuses_what_cannot_be_predicted():
    with pytest.raises(ValueError, match=r"row has shape \(2, 3\), expected \[T \+ 1\]"):
        prefix(np.ones((2, 3), int), np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least two tokens"):
        prefix(np.ones(1, int), np.random.default_rng(0))
    for objective in (prefix, lambda row, random, **options: hide(row, **options | {"end": None})):
        with pytest.raises(ValueError, match="segments=True needs end"):
            objective(np.ones(3, int), np.random.default_rng(0), segments=True)
    for shape in ((0,), (2, 3)):
        with pytest.raises(ValueError, match=r"row has shape .*expected \[T\]"):
            hide(np.ones(shape, int))
    with pytest.raises(ValueError, match=r"words has shape \(2,\), expected \(3,\)"):
        hide([1, 2, 3], words=np.zeros(2, int))
    for rate in (0, 1, math.nan):
        with pytest.raises(ValueError, match=f"rate={rate} is a share"):
            hide([1, 2, 3], rate=rate)
    with pytest.raises(ValueError, match=r"special id 10 is not in the vocabulary: use ids from 0 to vocab - 1 = 9"):
        hide([1, 2, 3], mask=10)
    with pytest.raises(ValueError, match="special id -1 is not"):
        hide([1, 2, 3], special=(-1,))
    with pytest.raises(ValueError, match="all vocab=10 ids are special"):
        hide([1, 2, 3], special=range(8))
    with pytest.raises(ValueError, match=r"target has shape \(1, 2\)"):
        sequence_to_sequence(np.ones(2, int), np.ones((1, 2), int), start=0, end=1)
