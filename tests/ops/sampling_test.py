from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.ops import sampling

FILTERS = {
    "top_k": (sampling.top_k, 3),
    "top_p": (sampling.top_p, 0.6),
    "min_p": (sampling.min_p, 0.2),
}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2


def softmax(row):
    exponentials = np.exp(row.astype(np.float64) - row.max())
    return exponentials / exponentials.sum()


def ranked(row):
    """Token ids, likeliest first, lower ids first among equals."""
    return sorted(range(len(row)), key=lambda token: (-row[token], token))


def by_top_k(row, k):
    return set(ranked(row)[:k])


def by_top_p(row, p):
    kept, reached = set(), 0.0
    for token in ranked(row):
        kept.add(token)
        reached += softmax(row)[token]
        if reached >= p:
            break
    return kept


def by_min_p(row, p):
    probabilities = softmax(row)
    return {token for token in range(len(row)) if probabilities[token] >= p * probabilities.max()}


def check_filter(actual, logits, expected):
    """What is kept is unchanged, what is not is -inf."""
    for got, row in zip(np.asarray(actual), logits, strict=True):
        kept = expected(row)
        np.testing.assert_array_equal(got, [x if token in kept else -np.inf for token, x in enumerate(row)])


def test_greedy_takes_the_lowest_id_among_equals():
    logits = jnp.asarray([[[0.0, 3.0, 3.0], [5.0, 1.0, 5.0]]])
    np.testing.assert_array_equal(sampling.greedy(logits), [[1, 0]])
    assert sampling.greedy(logits).dtype == jnp.int32


def test_categorical_draws_by_softmax():
    logits = np.asarray([[1.0, 0.0, -1.0, 2.0, -np.inf], [0.0, 0.0, 3.0, 1.0, -2.0]], np.float32)
    draws = 20_000
    tokens = sampling.categorical(jax.random.key(0), jnp.broadcast_to(logits, (draws, 2, 5)))
    assert tokens.dtype == jnp.int32 and tokens.shape == (draws, 2)
    for column, row in enumerate(logits):
        expected = softmax(row) * draws
        counts = np.bincount(np.asarray(tokens[:, column]), minlength=5)
        assert (counts[expected == 0] == 0).all()
        possible = expected > 0
        statistic = (np.square(counts - expected)[possible] / expected[possible]).sum()
        assert statistic < 18.5  # the 99.9th percentile of chi-squared with 4 degrees of freedom


def test_categorical_is_decided_by_its_key():
    logits = jnp.asarray(random(64, 10))
    first, again, other = (sampling.categorical(jax.random.key(seed), logits) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_categorical_draws_bfloat16_at_full_precision():
    # In bfloat16 the noise has 8 bits: of a thousand equal tokens most could never win.
    tokens = sampling.categorical(jax.random.key(0), jnp.zeros((4000, 1000), jnp.bfloat16))
    assert len(np.unique(tokens)) > 950  # 1000 (1 - exp(-4)) = 982 are expected


@pytest.mark.parametrize("k", [1, 3, 6, 7, 100])
def test_top_k_keeps_the_likeliest(k):
    logits = random(4, 7)
    check_filter(sampling.top_k(jnp.asarray(logits), k), logits, lambda row: by_top_k(row, k))


def test_top_k_keeps_exactly_k_of_equals():
    logits = np.asarray([[1.0, 2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    kept = np.isfinite(sampling.top_k(jnp.asarray(logits), 2))
    np.testing.assert_array_equal(kept, [[False, True, True, False, False], [True, True, False, False, False]])


@pytest.mark.parametrize("p", [0.01, 0.3, 0.7, 0.95])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    logits = random(6, 9)
    check_filter(sampling.top_p(jnp.asarray(logits), p), logits, lambda row: by_top_p(row, p))


def test_top_p_includes_the_token_that_crosses():
    logits = jnp.log(jnp.asarray([0.15, 0.5, 0.05, 0.3]))
    for p, kept in ((0.45, {1}), (0.55, {1, 3}), (0.79, {1, 3}), (0.81, {0, 1, 3}), (0.96, {0, 1, 2, 3})):
        assert set(np.flatnonzero(np.isfinite(sampling.top_p(logits, p)))) == kept


def test_top_p_prefers_lower_ids_among_equals():
    kept = np.isfinite(sampling.top_p(jnp.zeros(8), 0.3))
    np.testing.assert_array_equal(kept, np.arange(8) < 3)


@pytest.mark.parametrize("traced", [False, True])
def test_top_p_of_one_keeps_a_tail_that_float32_cannot_add(traced):
    logits = jnp.zeros(64).at[0].set(40.0)  # all but the first have probabilities near 4e-18
    run = jax.jit(sampling.top_p) if traced else sampling.top_p
    assert np.isfinite(run(logits, 1.0)).all()


@pytest.mark.parametrize("p", [0.02, 0.2, 0.7, 1.0])
def test_min_p_compares_with_the_likeliest(p):
    logits = random(6, 9)
    check_filter(sampling.min_p(jnp.asarray(logits), p), logits, lambda row: by_min_p(row, p))


def test_temperature_divides():
    logits = random(3, 5)
    moved = logits - logits.max(axis=-1, keepdims=True)
    np.testing.assert_allclose(sampling.temperature(jnp.asarray(logits), 0.5), moved * 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_lowest_temperature_leaves_a_distribution(dtype):
    logits = jnp.asarray([[40.0, 41.0, -jnp.inf, 3.0], [-5.0, -5.0, -6.0, -9.0]], dtype)
    for temperature in (1e-9, 1e-38, 1e-46, 5e-324):  # the last two are 0 in float32
        found = jax.nn.softmax(sampling.temperature(logits, temperature).astype(jnp.float32))
        np.testing.assert_array_equal(found, [[0, 1, 0, 0], [0.5, 0.5, 0, 0]])


def test_repetition_penalty_pushes_seen_tokens_down_whatever_their_sign():
    logits = np.asarray([[2.0, -2.0, 3.0, -3.0, 0.0]], np.float32)
    seen = jnp.asarray([[True, True, False, False, True]])
    np.testing.assert_allclose(
        sampling.repetition_penalty(jnp.asarray(logits), seen, 2.0), [[1.0, -4.0, 3.0, -3.0, 0.0]], rtol=1e-6
    )
    np.testing.assert_array_equal(sampling.repetition_penalty(jnp.asarray(logits), seen, 1.0), logits)


@pytest.mark.parametrize("name", FILTERS)
def test_filters_keep_dtype_and_extra_axes_and_compile(name):
    function, parameter = FILTERS[name]
    logits = random(2, 3, 8)
    together = function(jnp.asarray(logits, jnp.bfloat16), parameter)
    assert together.dtype == jnp.bfloat16 and together.shape == logits.shape
    whole = function(jnp.asarray(logits), parameter)
    np.testing.assert_array_equal(whole[1, 2], function(jnp.asarray(logits[1, 2]), parameter))
    np.testing.assert_array_equal(whole, jax.jit(lambda x: function(x, parameter))(logits))
    for keep_dtype in (lambda x: sampling.temperature(x, 0.7), lambda x: sampling.repetition_penalty(x, x > 0, 1.2)):
        assert keep_dtype(jnp.asarray(logits, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", FILTERS)
def test_filters_leave_removed_tokens_removed(name):
    function, parameter = FILTERS[name]
    logits = random(4, 8)
    logits[:, [1, 5]] = -np.inf
    filtered = np.asarray(function(jnp.asarray(logits), parameter))
    assert (filtered[:, [1, 5]] == -np.inf).all()
    np.testing.assert_array_equal(
        np.isfinite(np.delete(filtered, [1, 5], axis=1)),
        np.isfinite(function(jnp.asarray(np.delete(logits, [1, 5], axis=1)), parameter)),
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=6),
    st.sampled_from([("top_k", 1), ("top_k", 2), ("top_p", 1e-6), ("top_p", 0.5), ("min_p", 0.1), ("min_p", 1.0)]),
)
def test_the_likeliest_token_always_stays(row, choice):
    name, parameter = choice
    logits = jnp.asarray(row, jnp.float32)
    filtered = FILTERS[name][0](logits, parameter)
    assert sampling.greedy(filtered) == sampling.greedy(logits)
    assert np.isfinite(filtered).any()


def test_parameters_may_be_traced():
    logits = jnp.asarray(random(5, 8))
    for function, value in ((sampling.temperature, 0.5), (sampling.top_p, 0.6), (sampling.min_p, 0.2)):
        np.testing.assert_allclose(jax.jit(function)(logits, value), function(logits, value), rtol=1e-6)


@pytest.mark.parametrize(
    "function, value, named",
    [
        (sampling.temperature, 0.0, "temperature=0.0"),
        (sampling.temperature, -1, "temperature=-1"),
        (sampling.top_k, 0, "k=0"),
        (sampling.top_p, 0.0, "p=0.0"),
        (sampling.top_p, 1.1, "p=1.1"),
        (sampling.top_p, float("nan"), "p=nan"),
        (sampling.min_p, -0.1, "p=-0.1"),
        (sampling.min_p, np.float32(2), "p=2.0"),
        (lambda x, penalty: sampling.repetition_penalty(x, x > 0, penalty), 0.0, "penalty=0.0"),
    ],
)
def test_parameters_out_of_range_are_refused(function, value, named):
    with pytest.raises(ValueError, match=named):
        function(jnp.zeros((2, 4)), value)


def test_repetition_penalty_refuses_lists_of_tokens():
    with pytest.raises(ValueError, match="seen has shape"):
        sampling.repetition_penalty(jnp.zeros((2, 4)), jnp.zeros((2, 3), jnp.int32), 1.1)
