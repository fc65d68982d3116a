"""What is measured of nouns and heads, against plain loops on a random model."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import verdant_measures
from experiments import verdant_questions as questions
from experiments.verdant_lexicon import ENGLISH
from transformer import inspection, models
from transformer.models import Attention, ModelConfig, Stack

IDS = questions.numbers()


@pytest.fixture(scope="module")
def small():
    """A random model whose heads all matter, and its parameters."""
    stack = Stack(depth=2, attention=Attention(heads=2, head_width=4))
    model = models.Transformer(ModelConfig(vocab=len(IDS), width=8, length=28, decoder=stack))
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return model, jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.7, leaf.shape), leaf.dtype), shapes)


@pytest.fixture(scope="module")
def senses():
    """Enough questions for every noun, packed."""
    return packed(400)


def packed(count):
    return questions.pack(questions.collect(questions.senses, count, random.Random(0)), IDS, 28)


def test_nats_are_those_of_a_float64_softmax(small):
    draw = np.random.default_rng(1)
    inputs, targets = draw.integers(0, len(IDS), (2, 3, 9))
    weights = draw.integers(0, 2, (3, 9)).astype(np.float32)
    measured = verdant_measures.nats(*small, {"inputs": inputs, "targets": targets, "weights": weights})
    logits = np.asarray(inspection.run(*small, inputs)[0], np.float64)
    for row, place in np.ndindex(3, 9):
        likely = np.exp(logits[row, place])
        expected = -np.log(likely[targets[row, place]] / likely.sum()) * weights[row, place]
        assert measured[row, place] == pytest.approx(expected, rel=1e-5, abs=1e-5)  # a softmax in float32


def test_the_nearest_centroid_counts_ties_as_guesses():
    known, labels = np.array([[0.0, 0], [2, 0], [0, 4], [0, 6]]), np.array([7, 7, 9, 9])  # means (1, 0) and (0, 5)
    hits = verdant_measures.nearest_centroid(known, labels, np.array([[1.0, 1], [1, 1], [0, 9]]), np.array([7, 9, 9]))
    assert hits.tolist() == [1, 0, 1]
    alike = verdant_measures.nearest_centroid(
        np.full((6, 2), 0.1), np.arange(6) % 3, np.full((2, 2), 0.1), np.array([0, 2])
    )
    assert alike == pytest.approx([1 / 3, 1 / 3])


def test_a_noun_enters_as_one_vector_that_tells_no_sense(small, senses):
    vectors = verdant_measures.vectors(*small, senses)
    assert list(vectors) == [
        "decoder/embedding",
        *(f"decoder/{layer}/residual_{half}" for layer in (0, 1) for half in ("mid", "post")),
        "decoder/final_norm",
    ]
    nouns = senses.tokens[np.arange(400), senses.noun]
    table = np.asarray(small[1]["embedding"]["table"], np.float64)
    np.testing.assert_array_equal(vectors["decoder/embedding"], table[nouns])
    assert verdant_measures.spread(vectors["decoder/embedding"], nouns) == 0
    assert verdant_measures.spread(vectors["decoder/final_norm"], nouns) > 0.1
    chance = np.mean([1 / len(ENGLISH.ambiguous[noun]) for noun in senses.group[200:]])
    assert verdant_measures.accuracy(vectors["decoder/embedding"], senses) == pytest.approx(chance)


def test_accuracy_is_by_groups_on_the_second_half_with_means_of_the_first(senses):
    # Each noun has directions of its own: which answer a vector stands for is known within a group alone.
    nouns = np.unique(senses.group, return_inverse=True)[1]
    vectors = np.eye(3)[(senses.right + nouns) % 3]
    assert verdant_measures.accuracy(vectors, senses) == 1
    vectors[200:230] = np.eye(3)[(senses.other + nouns) % 3][200:230]
    assert verdant_measures.accuracy(vectors, senses) == pytest.approx(170 / 200)


class Loop:
    """Heads at the noun replaced in one row at a time, with a plain patch for each head."""

    def __init__(self, small, packed):
        self.small, self.packed, rows = small, packed, np.arange(len(packed.noun))
        taps = (
            inspection.run(*small, tokens, capture="decoder/*/mixed")[1] for tokens in (packed.tokens, packed.others)
        )
        here, self.there = (np.asarray(tap["decoder/*/mixed"])[:, rows, packed.noun] for tap in taps)  # [L, N, H, K]
        self.mean = np.broadcast_to(here.mean(axis=1, keepdims=True), here.shape)

    def scores(self, values, heads):
        """`[N, C]` with the heads of some pairs set to their values."""
        found = []
        for row, noun in enumerate(self.packed.noun):
            patches = [
                inspection.Patch(
                    f"decoder/{layer}/mixed",
                    values[layer, row, head],
                    head=head,
                    position=int(noun),
                    mask=np.asarray((layer, head) in heads),
                )
                for layer, head in np.ndindex(2, 2)
            ]
            logits, _ = inspection.run(*self.small, self.packed.tokens[row : row + 1], patches=patches)
            likely = np.exp(np.asarray(logits[0, noun], np.float64))
            totals = np.array([likely[words].sum() for words in self.packed.answers[row]])
            found.append(np.log(np.maximum(totals, 1e-300) / totals.sum()))
        return np.stack(found)

    def effect(self, scores, rows):
        each = list(zip(scores[rows], self.packed.right[rows], self.packed.other[rows], strict=True))
        return {
            "nats": np.mean([-row[right] for row, right, _ in each]),
            "right": np.mean([row.argmax() == right for row, right, _ in each]),
            "followed": np.mean([row.argmax() == other for row, _, other in each]),
            "odds": np.mean([row[other] - row[right] for row, right, other in each]),
        }


def test_heads_are_found_ablated_and_exchanged_as_in_a_plain_loop(small):
    few = packed(12)
    result, loop = verdant_measures.carriers(*small, few), Loop(small, few)
    first, second, every = slice(0, 6), slice(6, None), list(np.ndindex(2, 2))

    def same(effect, scores, head=()):
        for name, value in loop.effect(scores, second).items():
            # float32, and another order of sums in batches of one
            np.testing.assert_allclose(getattr(effect, name)[head], value, rtol=1e-4, atol=1e-4, err_msg=name)

    plain, whole = loop.scores(loop.there, []), loop.scores(loop.there, every)
    same(result.plain, plain)
    _, taps = inspection.run(*small, few.tokens, capture="decoder/*/pattern")
    looked = verdant_measures.attention(np.asarray(taps["decoder/*/pattern"]), few, np.arange(12) >= 6)
    np.testing.assert_allclose(result.attention, looked, rtol=1e-5)
    odds = {}
    for head in every:
        same(result.ablated, loop.scores(loop.mean, [head]), head)
        exchanged = loop.scores(loop.there, [head])
        same(result.exchanged, exchanged, head)
        odds[head] = loop.effect(exchanged, first)["odds"] - loop.effect(plain, first)["odds"]
    most = loop.effect(whole, first)["odds"] - loop.effect(plain, first)["odds"]
    found = [head for head in every if odds[head] >= verdant_measures.FOUND * most]
    assert [tuple(head) for head in np.argwhere(result.found)] == found and 0 < len(found) < 4
    for name, heads in {"found": found, "others": [head for head in every if head not in found], "all": every}.items():
        for values, effect in zip((loop.mean, loop.there), result.together[name], strict=True):
            same(effect, loop.scores(values, heads))


def test_attention_is_the_mass_on_the_words_that_decide(small, senses):
    rows = np.arange(400) < 5
    _, taps = inspection.run(*small, senses.tokens[:5], capture="decoder/*/pattern")
    pattern = np.asarray(taps["decoder/*/pattern"], np.float64)
    expected = [
        [
            np.mean([pattern[layer, row, head, senses.noun[row], senses.sources[row]].sum() for row in range(5)])
            for head in range(2)
        ]
        for layer in range(2)
    ]
    measured = verdant_measures.attention(pattern, questions.Questions(*(column[:5] for column in senses)), rows[:5])
    np.testing.assert_allclose(measured, expected, rtol=1e-6)
