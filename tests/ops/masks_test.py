from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops import masks

QUERIES = np.asarray([[3, 4, 5], [0, 7, 2]])  # a cached step, and positions out of order
KEYS = np.asarray([[0, 1, 2, 3, 4], [5, 2, 7, 0, 1]])


def by_loops(queries, keys, allowed):
    out = np.zeros((len(queries), 1, len(queries[0]), len(keys[0])), bool)
    for b in range(len(queries)):
        for t, query in enumerate(queries[b]):
            for s, key in enumerate(keys[b]):
                out[b, 0, t, s] = allowed(query, key)
    return out


def check(actual, expected):
    assert actual.dtype == bool
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual, expected)
    assert expected.any() and not expected.all()


def test_causal():
    check(masks.causal(jnp.asarray(QUERIES), jnp.asarray(KEYS)), by_loops(QUERIES, KEYS, lambda q, k: k <= q))


def test_causal_of_a_whole_sequence_is_a_lower_triangle():
    check(masks.causal(jnp.arange(4), jnp.arange(4)), np.tril(np.ones((4, 4), bool))[None, None])


def test_one_dimension_of_positions_serves_every_row():
    expected = by_loops(np.tile(QUERIES[:1], (2, 1)), KEYS, lambda q, k: k <= q)
    check(masks.causal(jnp.asarray(QUERIES[0]), jnp.asarray(KEYS)), expected)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_window(width):
    expected = by_loops(QUERIES, KEYS, lambda q, k: q - k < width)
    check(masks.window(jnp.asarray(QUERIES), jnp.asarray(KEYS), width), expected)


def test_a_causal_window_of_one_sees_itself_alone():
    places = jnp.arange(5)
    check(
        masks.combine(masks.causal(places, places), masks.window(places, places, 1)), np.eye(5, dtype=bool)[None, None]
    )


@pytest.mark.parametrize("width", [0, -3])
def test_an_empty_window_is_refused(width):
    with pytest.raises(ValueError, match=f"width={width}"):
        masks.window(jnp.arange(2), jnp.arange(2), width)


@pytest.mark.parametrize("dtype", [bool, np.int32])
def test_padding_hides_what_is_not_real(dtype):
    valid = np.asarray([[1, 1, 0], [1, 0, 0]]).astype(dtype)
    actual = masks.padding(jnp.asarray(valid))
    check(actual, valid.astype(bool)[:, None, None, :])


def test_segments_see_only_themselves():
    queries, keys = np.asarray([[1, 1, 2], [0, 3, 3]]), np.asarray([[1, 2, 2, 1], [3, 0, 1, 3]])
    check(masks.segment(jnp.asarray(queries), jnp.asarray(keys)), by_loops(queries, keys, lambda q, k: q == k))


def test_combine_is_the_conjunction():
    valid = np.asarray([[1, 1, 0, 1, 1], [1, 1, 1, 0, 1]], bool)
    queries, keys = jnp.asarray(QUERIES), jnp.asarray(KEYS)
    parts = [masks.causal(queries, keys), masks.window(queries, keys, 4), masks.padding(jnp.asarray(valid))]
    expected = by_loops(QUERIES, KEYS, lambda q, k: 0 <= q - k < 4) & valid[:, None, None, :]
    check(masks.combine(parts[0], None, parts[1], parts[2]), expected)
    check(masks.combine(*reversed(parts)), expected)


def test_combine_of_one_is_itself_and_of_none_is_none():
    mask = masks.causal(jnp.arange(3), jnp.arange(3))
    np.testing.assert_array_equal(masks.combine(None, mask), mask)
    assert masks.combine() is None
    assert masks.combine(None, None) is None
