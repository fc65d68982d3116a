"""The baselines against plain loops over a tiny vocabulary."""

import collections
import itertools
import math

import numpy as np
import pytest

from experiments import baselines

VOCAB = 7
STREAM = np.random.default_rng(0).choice(VOCAB - 1, size=60, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05])  # 6 never comes
STREAM = np.append(STREAM, VOCAB - 2).astype(np.uint16)


def plain_unigram(stream, vocab, word):
    return (list(stream).count(word) + 1) / (len(stream) + vocab)


def plain_bigram(stream, vocab, left, word):
    successors = collections.Counter(b for a, b in itertools.pairwise(stream) if a == left)
    below = plain_unigram(stream, vocab, word)
    if not successors:
        return below
    total = sum(successors.values())
    seen = max(successors[word] - 0.75, 0) / total
    return seen + 0.75 * len(successors) / total * below


def table(stream, vocab):
    """`[V, V]`: of each word given each left neighbour."""
    words = range(vocab)
    return np.array([[plain_bigram(stream, vocab, left, word) for word in words] for left in words])


def every(vocab):
    left, word = np.meshgrid(np.arange(vocab), np.arange(vocab), indexing="ij")
    return left, word


def test_the_unigram_counts_and_adds_one():
    made = baselines.unigram(STREAM, VOCAB)
    expected = [plain_unigram(STREAM, VOCAB, word) for word in range(VOCAB)]
    left, word = every(VOCAB)
    np.testing.assert_allclose(np.exp(made.log_probability(left, word)), [expected] * VOCAB, rtol=1e-12)  # float64
    assert sum(np.exp(made.log_probabilities)) == pytest.approx(1, abs=1e-12)
    assert made.best(left).tolist() == [[int(np.argmax(expected))] * VOCAB] * VOCAB


def test_the_bigram_is_that_of_a_plain_loop_and_sums_to_one():
    made = baselines.bigram(STREAM, VOCAB)
    found = np.exp(made.log_probability(*every(VOCAB)))
    np.testing.assert_allclose(found, table(STREAM, VOCAB), rtol=1e-12)  # float64, a few roundings
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
    none = np.full(VOCAB, baselines.NONE)
    expected = [plain_unigram(STREAM, VOCAB, word) for word in range(VOCAB)]
    np.testing.assert_allclose(np.exp(made.log_probability(none, np.arange(VOCAB))), expected, rtol=1e-12)
    assert made.best(none).tolist() == [int(np.argmax(expected))] * VOCAB


@pytest.mark.parametrize("seed", range(20))
def test_the_best_successor_is_the_likeliest_of_all(seed):
    random = np.random.default_rng(seed)
    stream = random.integers(0, 9, size=random.integers(2, 80)).astype(np.uint16)
    expected = table(stream, 10)
    best = baselines.bigram(stream, 10).best(np.arange(10))
    # Where two are equally likely, rounding may choose either.
    np.testing.assert_allclose(expected[np.arange(10), best], expected.max(axis=1), rtol=1e-12)


def test_the_best_successor_may_be_one_that_never_followed():
    # After 1 came 2 once, which leaves it a quarter, and the rest goes to a token that is most of the text.
    stream = np.array([0] * 40 + [1, 2])
    made = baselines.bigram(stream, 3)
    assert made.best(np.array([1])) == 0
    assert int(np.argmax(table(stream, 3)[1])) == 0


def test_measure_is_a_weighted_mean_over_true_neighbours():
    random = np.random.default_rng(1)
    rows = [
        {"targets": random.integers(0, VOCAB, (2, 5)).astype(np.int32), "weights": random.integers(0, 3, (2, 5)) / 2}
        for _ in range(3)
    ]
    rows[0]["weights"][:, 0] = 1  # positions without a neighbour count, too
    pairs = table(STREAM, VOCAB)
    alone = [plain_unigram(STREAM, VOCAB, word) for word in range(VOCAB)]
    total, sums = 0.0, {"unigram": [0.0, 0.0], "bigram": [0.0, 0.0]}
    for row in rows:
        for targets, weights in zip(row["targets"], row["weights"], strict=True):
            for place, (target, weight) in enumerate(zip(targets, weights, strict=True)):
                total += weight
                given = {"unigram": alone, "bigram": pairs[targets[place - 1]] if place else alone}
                for name, chances in given.items():
                    sums[name][0] += weight * (int(np.argmax(chances)) == target)
                    sums[name][1] -= weight * math.log(chances[target])
    measured = baselines.measure(STREAM, VOCAB, iter(rows))
    for name, (right, nats) in sums.items():
        expected = {"accuracy": right / total, "loss": nats / total, "perplexity": math.exp(nats / total)}
        assert measured[name] == pytest.approx(expected, rel=1e-12)
    assert measured["bigram"]["loss"] != pytest.approx(measured["unigram"]["loss"], rel=1e-3)


def test_the_bigram_knows_more_of_text_with_order():
    stream = np.tile(np.arange(50), 200)
    rows = [{"targets": stream[None, :256], "weights": np.ones((1, 256))}]
    measured = baselines.measure(stream, 50, rows)
    assert measured["bigram"]["accuracy"] == 1.0  # the first token is 0, which is as likely as any other
    assert measured["unigram"]["accuracy"] == pytest.approx(6 / 256)
    assert measured["unigram"]["perplexity"] == pytest.approx(50)


def test_large_vocabularies_do_not_need_a_square():
    vocab, tokens = 32_768, 200_000
    random = np.random.default_rng(0)
    stream = (random.zipf(1.3, tokens) % vocab).astype(np.uint16)
    made = baselines.bigram(stream, vocab)
    assert len(made.pairs) <= tokens
    words = np.arange(vocab)
    for left in (int(stream[0]), int(stream[-1]), int(random.integers(vocab))):
        assert np.exp(made.log_probability(np.full(vocab, left), words)).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (np.array([], np.uint16), r"train has shape \(0,\)"),
        (np.array([[1, 2]]), r"train has shape \(1, 2\)"),
        (np.array([0, 5]), "train has the id 5 for vocab=5"),
        (np.array([0, -3]), "train has the id -3 for vocab=5"),
    ],
)
def test_a_stream_that_cannot_be_counted_is_refused(stream, reason):
    for call in (baselines.unigram, baselines.bigram):
        with pytest.raises(ValueError, match=reason):
            call(stream, 5)


def test_rows_that_cannot_be_measured_are_refused():
    targets = np.array([[1, VOCAB]])
    with pytest.raises(ValueError, match=f"a target lies outside 0 to {VOCAB - 1}"):
        baselines.measure(STREAM, VOCAB, [{"targets": targets, "weights": np.ones((1, 2))}])
    for rows in ([], [{"targets": targets * 0, "weights": np.zeros((1, 2))}]):
        with pytest.raises(ValueError, match="rows has no position with a weight"):
            baselines.measure(STREAM, VOCAB, rows)
