from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops import attention, masks

BATCH, QUERIES, KEYS, HEADS, WIDTH = 2, 4, 6, 4, 5
GROUPS = pytest.mark.parametrize("groups", [4, 2, 1])  # multi-head, grouped, multi-query


def example(groups=HEADS, queries=QUERIES, keys=KEYS, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (BATCH, queries, HEADS, WIDTH), (BATCH, keys, groups, WIDTH), (BATCH, keys, groups, WIDTH)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def random_mask(seed=1):
    mask = np.random.default_rng(seed).random((BATCH, 1, QUERIES, KEYS)) < 0.6
    mask[..., 0] = True
    return mask


def scores_by_loops(query, key, scale=None, softcap=None, bias=None):
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    share = query.shape[2] // key.shape[2]
    out = np.zeros((query.shape[0], query.shape[2], query.shape[1], key.shape[1]))
    for b, h, t, s in np.ndindex(out.shape):
        x = float(query[b, t, h] @ key[b, s, h // share]) * (1 / math.sqrt(query.shape[3]) if scale is None else scale)
        out[b, h, t, s] = x if softcap is None else softcap * math.tanh(x / softcap)
    return out if bias is None else out + np.asarray(bias, np.float64)


def weights_by_loops(scores, mask=None):
    out = np.zeros(scores.shape)
    mask = np.ones(scores.shape, bool) if mask is None else np.broadcast_to(mask, scores.shape)
    for b, h, t in np.ndindex(scores.shape[:3]):
        allowed = [s for s in range(scores.shape[3]) if mask[b, h, t, s]]
        total = sum(math.exp(scores[b, h, t, s]) for s in allowed)
        for s in allowed:
            out[b, h, t, s] = math.exp(scores[b, h, t, s]) / total
    return out


def mix_by_loops(weights, value):
    value = np.asarray(value, np.float64)
    share = weights.shape[1] // value.shape[2]
    out = np.zeros((weights.shape[0], weights.shape[2], weights.shape[1], value.shape[3]))
    for b, h, t, s in np.ndindex(weights.shape):
        out[b, t, h] += weights[b, h, t, s] * value[b, s, h // share]
    return out


SETTINGS = {
    "plain": {},
    "scale": {"scale": 0.1},
    "softcap": {"softcap": 0.7},
    "bias": {"bias": np.random.default_rng(5).normal(size=(1, HEADS, QUERIES, KEYS)).astype(np.float32)},
    "all": {"scale": 2.0, "softcap": 3.0, "bias": np.random.default_rng(6).normal(size=(HEADS, 1, KEYS))},
}


@GROUPS
@pytest.mark.parametrize("name", SETTINGS)
def test_scores(groups, name):
    query, key, _ = example(groups)
    actual = attention.scores(
        query, key, **{k: jnp.asarray(v) if k == "bias" else v for k, v in SETTINGS[name].items()}
    )
    np.testing.assert_allclose(actual, scores_by_loops(query, key, **SETTINGS[name]), atol=1e-5)
    if name != "plain":
        assert np.abs(actual - scores_by_loops(query, key)).max() > 0.1


def test_the_cap_bounds_scores_before_the_bias():
    query, key, _ = example()
    capped = attention.scores(100 * query, key, softcap=2.0, bias=jnp.asarray(50.0))
    assert (jnp.abs(capped - 50.0) <= 2.0).all() and jnp.abs(capped - 50.0).max() > 1.9


@pytest.mark.parametrize("masked", [False, True])
def test_weights(masked):
    scores = np.random.default_rng(2).normal(size=(BATCH, HEADS, QUERIES, KEYS)) * 3
    mask = random_mask() if masked else None
    actual = attention.weights(jnp.asarray(scores, jnp.float32), None if mask is None else jnp.asarray(mask))
    np.testing.assert_allclose(actual, weights_by_loops(scores, mask), atol=1e-6)
    np.testing.assert_allclose(actual.sum(-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_weights_of_huge_scores_stay_finite(masked):
    scores = jnp.asarray([[[[1e4, 1e4 - 1.0, -1e4], [-1e30, -1e30, -1e38]]]])
    mask = jnp.ones((1, 1, 1, 3), bool) if masked else None
    first, half = 1 / (1 + math.exp(-1)), 0.5
    np.testing.assert_allclose(
        attention.weights(scores, mask)[0, 0], [[first, 1 - first, 0], [half, half, 0]], rtol=1e-6
    )


def test_what_is_masked_has_no_part_however_large():
    scores = jnp.asarray([[[[1.0, 1.0, 3e38, jnp.inf]]]])
    mask = jnp.asarray([True, True, False, False])
    np.testing.assert_allclose(attention.weights(scores, mask)[0, 0, 0], [0.5, 0.5, 0, 0], rtol=1e-6)


@GROUPS
def test_mix(groups):
    _, _, value = example(groups)
    pattern = weights_by_loops(np.random.default_rng(3).normal(size=(BATCH, HEADS, QUERIES, KEYS)))
    np.testing.assert_allclose(attention.mix(jnp.asarray(pattern), value), mix_by_loops(pattern, value), atol=1e-5)


@GROUPS
@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("masked", [False, True])
def test_attend(groups, name, masked):
    query, key, value = example(groups)
    mask, setting = (random_mask() if masked else None), SETTINGS[name]
    pattern = weights_by_loops(scores_by_loops(query, key, **setting), mask)
    actual = attention.attend(
        query,
        key,
        value,
        mask=None if mask is None else jnp.asarray(mask),
        **{k: jnp.asarray(v) if k == "bias" else v for k, v in setting.items()},
    )
    np.testing.assert_allclose(actual, mix_by_loops(pattern, value), atol=1e-5)


@GROUPS
def test_attend_agrees_with_jax(groups):
    query, key, value = example(groups)
    mask = jnp.asarray(random_mask())
    expected = jax.nn.dot_product_attention(query, key, value, mask=mask)
    np.testing.assert_allclose(attention.attend(query, key, value, mask=mask), expected, atol=1e-5)


def test_attend_agrees_with_flax():
    width = HEADS * WIDTH
    inputs = jnp.asarray(np.random.default_rng(4).normal(size=(BATCH, KEYS, width)), jnp.float32)
    mask = masks.causal(jnp.arange(KEYS), jnp.arange(KEYS))
    module = nn.MultiHeadDotProductAttention(num_heads=HEADS, qkv_features=width)
    parameters = jax.jit(module.init)(jax.random.key(0), inputs)["params"]
    query, key, value = (
        jnp.einsum("BTD,DHK->BTHK", inputs, parameters[name]["kernel"]) + parameters[name]["bias"]
        for name in ("query", "key", "value")
    )
    mixed = attention.attend(query, key, value, mask=mask)
    actual = jnp.einsum("BTHK,HKD->BTD", mixed, parameters["out"]["kernel"]) + parameters["out"]["bias"]
    np.testing.assert_allclose(actual, jax.jit(module.apply)({"params": parameters}, inputs, mask=mask), atol=1e-5)


@GROUPS
def test_bfloat16_keeps_its_dtype_and_scores_in_float32(groups):
    query, key, value = (x.astype(jnp.bfloat16) for x in example(groups))
    scores = attention.scores(query, key)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, scores_by_loops(query, key), atol=1e-5)  # bfloat16 products are exact here
    mixed = jax.jit(attention.attend)(query, key, value)
    assert mixed.dtype == jnp.bfloat16
    expected = mix_by_loops(weights_by_loops(scores_by_loops(query, key)), value)
    np.testing.assert_allclose(mixed.astype(jnp.float32), expected, atol=0.03)  # weights and result have 8 bits


def test_a_query_with_nothing_to_attend_to_gets_zeros_and_finite_gradients():
    query, key, value = example()
    mask = jnp.asarray(random_mask()).at[0, 0, 1].set(False).at[1].set(False)

    def attend(query, key, value, bias):
        return attention.attend(query, key, value, mask=mask, bias=bias, softcap=5.0)

    arguments = (query, key, value, jnp.zeros((HEADS, QUERIES, KEYS)))
    mixed = attend(*arguments)
    assert (mixed[0, 1] == 0).all() and (mixed[1] == 0).all() and (mixed[0, 0] != 0).all()
    gradients = jax.jit(jax.grad(lambda *x: jnp.sum(jnp.square(attend(*x) + 1.0)), argnums=(0, 1, 2, 3)))(*arguments)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    by_query, by_key, by_value, _ = gradients
    assert (by_query[0, 1] == 0).all() and (by_query[0, 0] != 0).all()
    assert (by_key[1] == 0).all() and (by_value[1] == 0).all()


def test_under_a_causal_mask_no_output_depends_on_later_keys():
    query, key, value = example(queries=KEYS)
    mask = masks.causal(jnp.arange(KEYS), jnp.arange(KEYS))

    def totals(key, value):
        return attention.attend(query, key, value, mask=mask)[0].sum((1, 2))

    by_key, by_value = jax.jit(jax.jacobian(totals, argnums=(0, 1)))(key, value)
    for gradient in (by_key, by_value):
        reach = np.asarray(jnp.abs(gradient[:, 0]).sum((2, 3)))  # [T, S]
        assert (reach[np.triu_indices(KEYS, 1)] == 0).all()
        # One key alone always has the weight 1, so that the first output does not depend on its size.
        assert (reach[np.tril_indices(KEYS)][1:] > 0).all()


def test_dropout_keeps_the_expectation_and_the_share():
    rate, draws = 0.25, 4000
    query, key, value = example()
    value = jnp.abs(value)

    def dropped(dropout_key):
        return attention.attend(query, key, value, dropout=rate, dropout_key=dropout_key)

    mean = jnp.mean(jax.jit(jax.vmap(dropped))(jax.random.split(jax.random.key(0), draws)), axis=0)
    # One draw has a standard deviation below |value| sqrt(rate / (1 - rate)), so the mean of 4000 one below 0.03.
    np.testing.assert_allclose(mean, attention.attend(query, key, value), atol=0.06)

    ones, uniform = jnp.ones((1, 2000, 1, 1)), jnp.zeros((1, 1, 1, 1))
    out = attention.attend(uniform, 0 * ones, ones, dropout=rate, dropout_key=jax.random.key(1)).item()
    # The kept share is out * (1 - rate); its standard deviation over 2000 keys is 0.0097.
    assert abs(out * (1 - rate) - (1 - rate)) < 0.03 and out != 1.0


def test_dropout_is_decided_by_its_key_and_off_without_one():
    arguments = example()
    exact = attention.attend(*arguments)
    first, again, other = (
        attention.attend(*arguments, dropout=0.5, dropout_key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(attention.attend(*arguments, dropout=0.5), exact)
    np.testing.assert_array_equal(attention.attend(*arguments, dropout_key=jax.random.key(0)), exact)


def test_observe_sees_scores_and_pattern_and_may_replace_them():
    query, key, value = example()
    seen = {}

    def read(name, x):
        seen[name] = x
        return x

    mask = jnp.asarray(random_mask())
    attention.attend(query, key, value, mask=mask, observe=read)
    assert list(seen) == ["scores", "pattern"]
    expected = scores_by_loops(query, key)
    np.testing.assert_allclose(seen["scores"], expected, atol=1e-5)
    np.testing.assert_allclose(seen["pattern"], weights_by_loops(expected, np.asarray(mask)), atol=1e-6)

    first_only = jnp.broadcast_to(jnp.eye(KEYS)[0], seen["pattern"].shape)
    replaced = attention.attend(query, key, value, observe=lambda name, x: first_only if name == "pattern" else x)
    np.testing.assert_allclose(replaced, jnp.broadcast_to(value[:, :1], replaced.shape), rtol=1e-6)
    flat = attention.attend(query, key, value, observe=lambda name, x: 0 * x if name == "scores" else x)
    np.testing.assert_allclose(flat, jnp.broadcast_to(value.mean(1, keepdims=True), flat.shape), atol=1e-6)


@pytest.mark.parametrize(
    "query, key, value, named",
    [
        ((2, 3, 8), (2, 3, 2, 4), (2, 3, 2, 4), r"need \[B, T, H, K\]"),
        ((2, 3, 2, 4), (2, 5, 2, 4), (2, 6, 2, 4), "do not fit"),
        ((2, 3, 2, 4), (1, 5, 2, 4), (1, 5, 2, 4), "do not fit"),
        ((2, 3, 2, 4), (2, 5, 2, 6), (2, 5, 2, 6), "do not fit"),
        ((2, 3, 4, 4), (2, 5, 3, 4), (2, 5, 3, 4), "4 query heads cannot share 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(query, key, value, named):
    with pytest.raises(ValueError, match=named):
        attention.attend(jnp.zeros(query), jnp.zeros(key), jnp.zeros(value))


def test_values_may_be_wider_than_keys():
    query, key, _ = example()
    value = jnp.asarray(np.random.default_rng(7).normal(size=(BATCH, KEYS, HEADS, 9)), jnp.float32)
    expected = mix_by_loops(weights_by_loops(scores_by_loops(query, key)), value)
    np.testing.assert_allclose(attention.attend(query, key, value), expected, atol=1e-5)


@pytest.mark.parametrize("low", [-np.inf, np.finfo(np.float32).min])
def test_a_key_that_is_scored_out_lets_nothing_through_the_mask(low):
    scores = jnp.asarray([[[[low, 5.0, 5.0], [low, 1.0, 5.0], [low, low, 5.0]]]])
    mask = jnp.tril(jnp.ones((3, 3), bool))
    pattern = np.asarray(attention.weights(scores, mask))[0, 0]
    assert (pattern[~np.asarray(mask)] == 0).all()
    np.testing.assert_array_equal(pattern[1], [0, 1, 0])
    first = 0 if low == -np.inf else 1  # the lowest number is a score like any other, minus infinity is none
    np.testing.assert_array_equal(pattern[0], [first, 0, 0])
    gradient = jax.grad(lambda s: jnp.sum(attention.weights(s, mask) ** 2))(scores)
    assert np.isfinite(gradient).all()


def test_without_a_mask_a_row_of_minus_infinity_gets_zeros():
    scores = jnp.full((1, 1, 1, 3), -jnp.inf)
    np.testing.assert_array_equal(attention.weights(scores), np.zeros((1, 1, 1, 3)))


@pytest.mark.parametrize("shape", [(QUERIES, KEYS), (HEADS, 1, KEYS), (BATCH, HEADS, QUERIES, KEYS)])
def test_parts_of_rows_have_their_part_of_a_bias(shape, monkeypatch):
    query, key, value = example(groups=2)
    bias = jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)
    whole = attention.attend(query, key, value, bias=bias)
    monkeypatch.setattr(attention, "PARTED_FROM", 0)
    monkeypatch.setattr(attention, "cores", lambda: 2)
    assert attention._parts(query, key) == 2
    np.testing.assert_allclose(attention.attend(query, key, value, bias=bias), whole, atol=1e-6)


def test_rows_stay_together_where_that_is_as_fast(monkeypatch):
    monkeypatch.setattr(attention, "cores", lambda: 5)

    def parts(rows, length, heads=4, groups=4):
        query, key = (jax.ShapeDtypeStruct((rows, length, n, 8), jnp.float32) for n in (heads, groups))
        return attention._parts(query, key)

    assert parts(8, 256) == 4 and parts(15, 256) == 5 and parts(7, 256) == 1
    assert parts(8, 64) == parts(8, 512) == parts(8, 256, groups=2) == parts(8, 1) == 1
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert parts(8, 256) == 1
