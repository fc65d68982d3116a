from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from transformer.models.config import Attention, Init, ModelConfig, Position, Scaling, Stack
from transformer.nn.positions import PositionEmbedding, RelativeBias, alibi_bias, look_up, rotation

QUERIES, KEYS = np.array([[5, 6], [0, 9]]), np.array([[3, 4, 5, 6], [0, 1, 2, 3]])


def settings(position, heads=2, width=16):
    stack = Stack(1, Attention(heads), position=position)
    return ModelConfig(11, width, decoder=stack, length=12, init=Init(embedding=0.3)), stack


def test_looking_up_outside_a_table_is_undefined():
    table = np.arange(6.0).reshape(3, 2)
    out = look_up(table, np.array([[0, 2], [-1, 3]]))
    np.testing.assert_array_equal(out[0], table[[0, 2]])
    assert np.isnan(out[1]).all()


def test_learned_positions_are_rows_of_a_table():
    config, stack = settings(Position("learned"), width=700)
    out, variables = PositionEmbedding(config, stack).init_with_output(jax.random.key(0), QUERIES)
    table = variables["params"]["table"]
    assert table.shape == (12, 700)
    assert np.std(table) == pytest.approx(0.3, rel=0.05)  # 8,400 draws: known to a hundredth
    np.testing.assert_array_equal(out, table[QUERIES])


def test_learned_positions_may_begin_further_down_their_table():
    config, stack = settings(Position("learned", offset=2))
    out, variables = PositionEmbedding(config, stack).init_with_output(jax.random.key(0), QUERIES)
    table = variables["params"]["table"]
    assert table.shape == (12 + 2, 16)
    np.testing.assert_array_equal(out, table[QUERIES + 2])
    beyond = PositionEmbedding(config, stack).apply(variables, np.array([[-1, 0, 11, 12]]))
    assert np.isnan(beyond).all(axis=-1).tolist() == [[True, False, False, True]]  # rows before the first are no one's


@pytest.mark.parametrize("bidirectional", [False, True])
def test_relative_bias_is_the_row_of_each_distance(bidirectional):
    config, stack = settings(Position("relative", buckets=8, distance=16))
    table = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    out = RelativeBias(config, stack, bidirectional).apply({"params": {"table": table}}, QUERIES, KEYS)
    assert out.shape == (2, 2, 2, 4)
    for row, t, s in np.ndindex(2, 2, 4):
        back = QUERIES[row, t] - KEYS[row, s]
        if (
            bidirectional
        ):  # two buckets of their own, then [2, 16) in two halves of equal ratio: below and from sqrt(32)
            bucket = (4 if back < 0 else 0) + [0, 1, 2, 3][min(abs(back), 2) + (abs(back) >= math.sqrt(32))]
        else:  # four of their own, then [4, 16) in four: edges at 4 * 4^(k / 4)
            bucket = max(back, 0) if back < 4 else 4 + sum(back >= 4 * 4 ** (k / 4) for k in (1, 2, 3))
        np.testing.assert_array_equal(out[row, :, t, s], table[bucket])


def test_alibi_falls_with_distance_on_both_sides():
    out = alibi_bias(4, QUERIES, KEYS)
    distances = np.abs(QUERIES[:, :, None] - KEYS[:, None])
    expected = np.stack([-(2.0 ** -(2 * (head + 1))) * distances for head in range(4)], axis=1)
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def frequencies(kind, pairs, base=100.0, factor=4.0, original=64, low=1.0, high=8.0):
    """Of each pair, by the papers' formulas."""
    plain = np.array([base ** (-i / pairs) for i in range(pairs)])
    if kind == "linear":
        return plain / factor
    if kind == "ntk":
        return np.array([(base * factor ** (pairs / (pairs - 1))) ** (-i / pairs) for i in range(pairs)])
    if kind == "llama3":
        turns = original * plain / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return smooth * plain + (1 - smooth) * plain / factor
    return plain


@pytest.mark.parametrize("kind", ["none", "linear", "ntk", "llama3"])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_rotation_turns_the_configured_share_by_the_configured_frequencies(kind, fraction):
    scaling = Scaling(kind, factor=4.0, original_length=64, low=1.0, high=8.0)
    config, stack = settings(Position(base=100.0, fraction=fraction, scaling=scaling), heads=1)
    heads = np.random.default_rng(0).normal(size=(2, 2, 1, 16)).astype(np.float32)
    half = int(8 * fraction)
    angles = QUERIES[..., None, None] * frequencies(kind, half)
    turned = (heads[..., :half] + 1j * heads[..., half : 2 * half]) * np.exp(1j * angles)
    expected = np.concatenate([turned.real, turned.imag, heads[..., 2 * half :]], axis=-1)
    np.testing.assert_allclose(rotation(config, stack, QUERIES)(heads), expected, rtol=1e-4, atol=1e-5)


def test_a_fraction_that_rounds_down_turns_every_feature_of_its_share():
    config, stack = settings(Position(base=100.0, fraction=30 / 44), heads=1, width=44)
    assert 44 * stack.position.fraction < 30
    heads = np.random.default_rng(0).normal(size=(2, 2, 1, 44)).astype(np.float32)
    angles = QUERIES[..., None, None] * frequencies("none", 15)
    turned = (heads[..., :15] + 1j * heads[..., 15:30]) * np.exp(1j * angles)
    expected = np.concatenate([turned.real, turned.imag, heads[..., 30:]], axis=-1)
    np.testing.assert_allclose(rotation(config, stack, QUERIES)(heads), expected, rtol=1e-4, atol=1e-5)


def test_yarn_takes_another_magnitude():
    def turned(magnitude):
        scaling = Scaling("yarn", factor=4.0, original_length=64, low=1.0, high=8.0, magnitude=magnitude)
        config, stack = settings(Position(base=100.0, scaling=scaling), heads=1)
        return np.asarray(rotation(config, stack, QUERIES)(np.ones((2, 2, 1, 16), np.float32)))

    np.testing.assert_allclose(np.linalg.norm(turned(2.5), axis=-1), 2.5 * 4.0, rtol=1e-5)  # 4 is the norm of 16 ones
    np.testing.assert_allclose(turned(2.5), 2.5 * turned(1.0), rtol=1e-5, atol=1e-6)


def test_yarn_grows_queries_and_keys_and_leaves_the_fastest_pair():
    scaling = Scaling("yarn", factor=4.0, original_length=64, low=1.0, high=8.0)
    config, stack = settings(Position(base=100.0, scaling=scaling), heads=1)
    heads = np.ones((2, 2, 1, 16), np.float32)
    out = np.asarray(rotation(config, stack, QUERIES)(heads))
    grown = 0.1 * math.log(4.0) + 1
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), grown * np.linalg.norm(heads, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(out[..., 0, 0], grown * (np.cos(QUERIES) - np.sin(QUERIES)), rtol=1e-4, atol=1e-5)


def test_dynamic_scaling_begins_where_the_original_length_ends():
    def turned(last, kind):
        scaling = Scaling(kind, factor=2.0, original_length=8)
        config, stack = settings(Position(base=100.0, scaling=scaling), heads=1)
        return rotation(config, stack, np.array([[1, last]]))(np.ones((1, 2, 1, 16), np.float32))[:, 0]

    np.testing.assert_allclose(turned(7, "dynamic"), turned(7, "none"), rtol=1e-6)
    stretch = 2.0 * 16 / 8 - (2.0 - 1)  # NTK-aware, with this factor at 16 positions
    plain = dataclasses.replace(Position(), base=100.0 * stretch ** (8 / 7))
    config, stack = settings(plain, heads=1)
    expected = rotation(config, stack, np.array([[1, 15]]))(np.ones((1, 2, 1, 16), np.float32))[:, 0]
    np.testing.assert_allclose(turned(15, "dynamic"), expected, rtol=1e-5)
