from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Attention, ModelConfig, Norm, Stack
from transformer.nn import cache as caches
from transformer.nn.attention import MultiHeadAttention, View
from transformer.nn.tap import Tap

CLOSE = dict(rtol=1e-4, atol=1e-5)
X = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
MEMORY = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
CAUSAL = np.tri(4, dtype=bool)[None, None]


def build(**fields):
    stack = Stack(2, Attention(**fields), norm=Norm(zero_centred=True))
    module = MultiHeadAttention(ModelConfig(11, 8, decoder=stack), stack)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), X, View(), Tap(), None, 0, False))["params"]
    draw = np.random.default_rng(2)
    return module, jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.5, leaf.shape), jnp.float32), shapes)


def expected(module, params, x, memory, mask=None, bias=None, turn=lambda heads: heads):
    attention = module.stack.attention
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    part = lambda name, of: np.einsum("btd,dhk->bthk", of, params[name]["kernel"]) + params[name].get("bias", 0)  # noqa: E731
    query, key, value = part("query", x), part("key", memory), part("value", memory)
    if attention.query_key_norm:
        query, key = (
            heads / np.sqrt(np.mean(heads**2, -1, keepdims=True) + 1e-6) * (1 + params[name]["scale"])
            for heads, name in ((query, "query_norm"), (key, "key_norm"))
        )
    share = query.shape[2] // key.shape[2]
    query, key, value = turn(query), np.repeat(turn(key), share, axis=2), np.repeat(value, share, axis=2)
    scores = np.einsum("bthk,bshk->bhts", query, key) * (attention.scale or query.shape[3] ** -0.5)
    scores = scores if attention.softcap is None else attention.softcap * np.tanh(scores / attention.softcap)
    raised = np.exp(scores + (0 if bias is None else bias)) * (1 if mask is None else mask)
    mixed = np.einsum("bhts,bshk->bthk", raised / raised.sum(-1, keepdims=True), value)
    return np.einsum("bthk,hkd->btd", mixed, params["output"]["kernel"]) + params["output"].get("bias", 0)


FEATURES = [
    dict(heads=2),
    dict(heads=4, kv_heads=2, bias=True, output_bias=True),
    dict(heads=6, kv_heads=1, head_width=4, scale=0.3),
    dict(heads=4, kv_heads=2, query_key_norm=True, softcap=0.5),
]


@pytest.mark.parametrize("fields", FEATURES)
def test_self_attention_is_its_formula(fields):
    module, params = build(**fields)
    bias = np.random.default_rng(3).normal(size=(1, fields["heads"], 4, 4)).astype(np.float32)
    view = View(CAUSAL, bias, rotate=lambda heads: heads * np.float32(1.5))
    out, cache = module.apply({"params": params}, X, view, Tap(), None, 0, False)
    assert cache is None
    np.testing.assert_allclose(out, expected(module, params, X, X, CAUSAL, bias, lambda heads: heads * 1.5), **CLOSE)


@pytest.mark.parametrize("fields", FEATURES)
def test_cross_attention_reads_the_memory(fields):
    module, params = build(**fields)
    mask = np.array([[True, True, False], [True, True, True]])[:, None, None]
    out, _ = module.apply({"params": params}, X, MEMORY, View(mask), Tap(), None, 0, False, method="cross")
    np.testing.assert_allclose(out, expected(module, params, X, MEMORY, mask), **CLOSE)


def test_a_query_that_may_attend_to_nothing_gets_the_output_bias():
    module, params = build(heads=2, output_bias=True)
    mask = np.array([True, False])[:, None, None, None]
    out, _ = module.apply({"params": params}, X, View(mask), Tap(), None, 0, False)
    np.testing.assert_allclose(out[1], np.broadcast_to(params["output"]["bias"], (4, 8)), **CLOSE)
    assert np.abs(out[0] - params["output"]["bias"]).max() > 1e-2


def test_each_head_reads_its_own_slice():
    module, params = build(heads=4, kv_heads=2)
    silent = jax.tree.map(lambda leaf: leaf, params)
    silent["output"]["kernel"] = params["output"]["kernel"].at[1:].set(0.0)
    out, _ = module.apply({"params": silent}, X, View(), Tap(), None, 0, False)
    single, one = build(heads=1, head_width=2)
    one = {name: {"kernel": params[name]["kernel"][:, :1]} for name in ("query", "key", "value")}
    one["output"] = {"kernel": params["output"]["kernel"][:1]}
    np.testing.assert_allclose(out, single.apply({"params": one}, X, View(), Tap(), None, 0, False)[0], **CLOSE)


def test_reading_the_parts_of_heads_changes_no_number():
    module, params = build(heads=4, bias=True, output_bias=True)
    plain, _ = module.apply({"params": params}, X, View(CAUSAL), Tap(), None, 0, False)
    tap = Tap(["decoder/*/head_output"], prefix="decoder/*/")
    out, _ = module.apply({"params": params}, X, View(CAUSAL), tap, None, 0, False)
    np.testing.assert_allclose(out, plain, **CLOSE)
    parts = tap.captured["decoder/*/head_output"]
    np.testing.assert_allclose(np.sum(parts, axis=2) + params["output"]["bias"], plain, **CLOSE)


def test_a_cache_is_written_where_rows_stand_and_read_from_the_start():
    module, params = build(heads=4, kv_heads=2)
    cache = caches.empty(module.config, 2, 6).replace(length=jnp.array([0, 2]))
    seen = np.arange(6) < 4
    out, cache = module.apply({"params": params}, X, View(seen), Tap(), cache, 1, False)
    keys = np.einsum("btd,dhk->bthk", X, params["key"]["kernel"])
    np.testing.assert_allclose(cache.layer(1)[0][0, :4], keys[0], **CLOSE)
    np.testing.assert_allclose(cache.layer(1)[0][1, 2:], keys[1], **CLOSE)
    np.testing.assert_array_equal(cache.key[0], np.zeros_like(cache.key[0]))
    np.testing.assert_array_equal(cache.length, [0, 2])
    np.testing.assert_allclose(out[0], expected(module, params, X[:1], X[:1])[0], **CLOSE)


def test_a_cache_keeps_the_memory():
    module, params = build(heads=2)
    config = ModelConfig(11, 8, encoder=module.stack, decoder=module.stack)
    call = lambda memory, cache: module.apply(  # noqa: E731
        {"params": params}, X, memory, View(), Tap(), cache, 1, False, method="cross"
    )
    first, cache = call(MEMORY, caches.empty(config, 2, 6, 3))
    again, _ = call(None, cache)
    np.testing.assert_allclose(first, expected(module, params, X, MEMORY), **CLOSE)
    np.testing.assert_array_equal(first, again)
