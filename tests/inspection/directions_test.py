from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.inspection import directions, lens
from transformer.models.config import Attention, Mlp, Norm, Position

GPT2 = dict(
    attention=Attention(4, bias=True, output_bias=True),
    mlp=Mlp(20, "gelu_tanh", gated=False, bias=True),
    norm=Norm("layer", 1e-5, bias=True),
    position=Position("learned"),
)
KING, QUEEN, MAN, WOMAN, DOG, DOGS, CAT, CATS = range(8)


@pytest.fixture(scope="module")
def words():
    """A table in which royalty, womanhood, number and two kinds of animal are directions of their own, with noise."""
    draw = np.random.default_rng(0)
    table = draw.normal(0, 0.1, (40, 12))
    royal, female, plural, dog, cat = np.linalg.qr(draw.normal(size=(12, 5)))[0].T
    table[[KING, QUEEN]] += royal
    table[[QUEEN, WOMAN]] += female
    table[[DOGS, CATS]] += plural
    table[[DOG, DOGS]] += dog
    table[[CAT, CATS]] += cat
    return {"embedding": {"table": jnp.asarray(table, jnp.float32)}}


def test_king_less_man_plus_woman_is_queen(words):
    found = jax.jit(lambda params: directions.analogy(params, plus=[KING, WOMAN], minus=[MAN], top=3))(words)
    assert found.ids[0] == QUEEN and found.scores[0] > 0.8 > found.scores[1] + 0.1
    assert not {KING, WOMAN, MAN} & set(directions.analogy(words, plus=[KING, WOMAN], minus=[MAN], top=37).ids.tolist())


@pytest.mark.parametrize("by", directions.MEASURES)
def test_the_nearest_tokens_are_those_of_a_loop(words, by):
    table = np.asarray(words["embedding"]["table"], np.float64)
    vectors = np.random.default_rng(1).normal(size=(2, 3, 12))
    exclude = [4, 7, 39]
    found = directions.nearest(words, vectors, top=5, by=by, exclude=exclude)
    assert found.ids.shape == found.scores.shape == (2, 3, 5)
    for place in np.ndindex(2, 3):
        scores = {}
        for token in set(range(40)) - set(exclude):
            size = np.linalg.norm(table[token]) * np.linalg.norm(vectors[place]) if by == "cosine" else 1.0
            scores[token] = table[token] @ vectors[place] / size
        order = sorted(scores, key=scores.get, reverse=True)[:5]
        assert found.ids[place].tolist() == order
        np.testing.assert_allclose(found.scores[place], [scores[token] for token in order], rtol=1e-4, atol=1e-6)


def test_plurality_tells_plurals_from_singulars_that_it_was_not_made_of(words):
    plurality = directions.difference(words, jnp.asarray([DOGS]), jnp.asarray([DOG]))
    reach = directions.project(directions.embeddings(words, jnp.arange(8)), 10 * plurality)
    assert reach[CATS] - reach[CAT] > 0.7 and abs(reach[KING] - reach[MAN]) < 0.4
    table = np.asarray(words["embedding"]["table"], np.float64)
    several = directions.difference(words, [DOGS, CATS], [DOG, CAT, MAN])
    expected = (table[DOGS] + table[CATS]) / 2 - (table[DOG] + table[CAT] + table[MAN]) / 3
    np.testing.assert_allclose(several, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        directions.project(table[:3], several), table[:3] @ expected / np.linalg.norm(expected), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("stack", [GPT2, {}], ids=["gpt2", "llama"])
def test_movement_through_the_layers_of_a_model(build, stack):
    model, params, tokens, _ = build("decoder", depth=3, **stack)
    layers, found = jax.jit(
        lambda params: (rows := lens.residuals(model, params, tokens, positions=(1, -1)), directions.movement(rows)),
        compiler_options={"xla_backend_optimization_level": 0},
    )(params)
    rows = np.asarray(layers, np.float64)
    for place in np.ndindex(4, 2, 2):
        now, start = rows[place], rows[(0, *place[1:])]
        before = rows[(max(place[0] - 1, 0), *place[1:])]
        cosine = lambda one, two: one @ two / np.linalg.norm(one) / np.linalg.norm(two)  # noqa: E731
        np.testing.assert_allclose(found.norm[place], np.linalg.norm(now), rtol=1e-5)
        np.testing.assert_allclose(found.to_start[place], cosine(now, start), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.to_previous[place], cosine(now, before), rtol=1e-4, atol=1e-5)
    assert np.ptp(found.to_start) > 0.1 and np.ptp(found.to_previous - found.to_start) > 0.01


def test_contexts_part_where_the_angle_between_them_says_so():
    # Two tokens: one whose contexts turn away by 0, 20, 40, ... degrees, and one whose contexts stay 10 degrees apart.
    angles = np.radians(np.stack([20 * np.arange(6), np.full(6, 10)], axis=1))
    lengths = np.arange(1, 13).reshape(6, 2)
    other = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * lengths[..., None]
    one = np.broadcast_to([3.0, 0.0], other.shape)
    found = jax.jit(directions.parting)(one, other)
    np.testing.assert_allclose(found.cosines, np.cos(angles), atol=1e-6)
    assert found.first.tolist() == [4, -1]  # below 0.5: beyond 60 degrees
    assert directions.parting(one, other, threshold=0.99).first.tolist() == [1, 0]
    zero = directions.parting(np.zeros((2, 2)), np.ones((2, 2)))
    assert zero.cosines.tolist() == [0, 0] and zero.first == 0


def test_an_id_outside_the_vocabulary_is_no_other_tokens(words):
    found = np.asarray(directions.embeddings(words, jnp.asarray([[1, 40], [-1, 39]])))
    assert np.isnan(found).all(axis=-1).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(by="angle"), r"by='angle' is unknown; choose one of cosine, dot"),
        (dict(top=0), r"top=0 is out of range: 40 of 40 tokens are not excluded"),
        (dict(top=39, exclude=[1, 2]), r"top=39 is out of range: 38 of 40 tokens are not excluded"),
    ],
)
def test_what_cannot_be_near_is_refused(words, options, message):
    with pytest.raises(ValueError, match=message):
        directions.nearest(words, jnp.ones(12), **options)
