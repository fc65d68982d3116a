"""A mixture of experts against a loop over tokens in float64, in values and gradients."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Attention, ModelConfig, Stack
from transformer.models.feed_forward import Experts, Mlp
from transformer.nn.experts import MixtureOfExperts
from transformer.nn.mlp import FeedForward
from transformer.nn.tap import Patch, Tap

B, T, D, F = 2, 7, 6, 10
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)), jnp.float32)
REAL = np.arange(T) >= np.array([[2], [0]])  # two tokens of padding on the left of the first row
CASES = {
    "mixtral": Mlp(F, experts=Experts(5, 2)),
    "switch": Mlp(F, "relu", gated=False, experts=Experts(4, 1, normalize=False)),
    "biases": Mlp(F, "gelu", bias=True, experts=Experts(3, 3, normalize=False)),
    "tight": Mlp(F, experts=Experts(4, 2, capacity=0.6)),
    "tight, one each": Mlp(F, gated=False, bias=True, experts=Experts(3, 1, normalize=False, capacity=0.5)),
}
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def build(mlp, **fields):
    stack = Stack(1, Attention(1), mlp=mlp)
    config = ModelConfig(11, D, decoder=stack, **fields)
    module = (FeedForward if mlp.experts is None else MixtureOfExperts)(config, stack)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), X, Tap()))["params"]
    draw = np.random.default_rng(1)
    return module, jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.6, leaf.shape), leaf.dtype), shapes)


def by_hand(mlp, params, x, real=None):
    """Token by token, expert by expert, and how many assignments found no room."""
    experts, late, out = mlp.experts, 0, np.zeros_like(x)
    for row in range(len(x)):
        used = np.zeros(experts.count, int)
        for place, token in enumerate(x[row]):
            logits = token @ params["router"]["kernel"]
            order = np.argsort(-logits, kind="stable")[: experts.active]
            weights = np.exp(logits - logits.max())
            weights = weights[order] / (weights[order] if experts.normalize else weights).sum()
            for expert, weight in zip(order, weights, strict=True):
                counted = real is None or real[row, place]
                if experts.capacity is not None and (not counted or used[expert] >= experts.places(x.shape[1])):
                    late += counted
                    continue
                used[expert] += 1
                out[row, place] += weight * one_expert(mlp, params, expert, token)
    return out, late


def one_expert(mlp, params, expert, token):
    part = lambda name, x: x @ params[name]["kernel"][expert] + (params[name]["bias"][expert] if mlp.bias else 0)  # noqa: E731
    gelu = lambda x: x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2  # noqa: E731
    act = {"silu": lambda x: x / (1 + np.exp(-x)), "relu": lambda x: x * (x > 0), "gelu": gelu}[mlp.activation]
    return part("down", act(part("gate", token)) * part("up", token) if mlp.gated else act(part("up", token)))


def exact(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_a_loop_over_tokens(name):
    mlp, reader = CASES[name], np.random.default_rng(2).normal(size=X.shape)
    module, params = build(mlp)
    real = REAL if name == "tight" else None
    apply = lambda params, x: module.apply({"params": params}, x, Tap(), real=real)  # noqa: E731
    expected, late = by_hand(mlp, exact(params), exact(X), real)
    assert (late > 1) == (mlp.experts.capacity is not None)
    np.testing.assert_allclose(quick(apply)(params, X), expected, rtol=1e-4, atol=1e-5)

    gradients = quick(jax.grad(lambda *args: jnp.sum(apply(*args) * reader), argnums=(0, 1)))(params, X)
    draw, step = np.random.default_rng(3), 1e-6
    leaves, structure = jax.tree.flatten((exact(params), exact(X)))
    for index, (path, gradient) in enumerate(jax.tree_util.tree_leaves_with_path(gradients)):
        way, ends = draw.normal(size=gradient.shape), []
        for sign in (1, -1):  # along a way that one leaf alone goes, by central differences in float64
            moved = [*leaves[:index], leaves[index] + sign * step * way, *leaves[index + 1 :]]
            ends.append(np.sum(by_hand(mlp, *structure.unflatten(moved), real)[0] * reader))
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * way), slope, rtol=2e-4, atol=2e-4, err_msg=str(path))
        assert np.abs(gradient).max() > 1e-3, path


def test_where_nothing_is_dropped_both_ways_are_one():
    mlp = CASES["mixtral"]
    module, params = build(mlp)
    roomy = MixtureOfExperts(module.config, Stack(1, Attention(1), Mlp(F, experts=Experts(5, 2, capacity=2.5))))
    assert roomy.stack.mlp.experts.places(T) == T
    run = lambda module, **rest: quick(  # noqa: E731
        jax.value_and_grad(lambda params: jnp.sum(module.apply({"params": params}, X, Tap(), **rest) ** 2))
    )(params)
    expected = run(module)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # noqa: E731
    jax.tree.map(close, run(roomy), expected)
    tight = MixtureOfExperts(module.config, Stack(1, Attention(1), Mlp(F, experts=Experts(5, 2, capacity=0.5))))
    assert abs(run(tight)[0] - expected[0]) > 1e-2
    jax.tree.map(np.testing.assert_array_equal, run(tight, drops=False), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_one_expert_is_the_dense_layer(bias):
    dense = Mlp(F, bias=bias)
    module, params = build(dataclasses.replace(dense, experts=Experts(1, 1)))
    alone = jax.tree.map(lambda leaf: leaf[0], {name: part for name, part in params.items() if name != "router"})
    expected = build(dense)[0].apply({"params": alone}, X, Tap())
    np.testing.assert_array_equal(module.apply({"params": params}, X, Tap()), expected)


def test_a_token_that_comes_later_takes_no_room_from_earlier_ones():
    module, params = build(CASES["tight"])
    other = X.at[:, 4:].set(np.random.default_rng(5).normal(size=(B, T - 4, D)))
    run = quick(lambda x: module.apply({"params": params}, x, Tap()))
    np.testing.assert_array_equal(run(X)[:, :4], run(other)[:, :4])


def test_the_router_is_read_and_replaced():
    module, params = build(CASES["mixtral"])
    tap = Tap(("router",))
    out = module.apply({"params": params}, X, tap)
    assert tap.captured["router"].shape == (B, T, 5)
    np.testing.assert_allclose(tap.captured["router"], X @ params["router"]["kernel"], rtol=1e-5, atol=1e-5)
    # Everybody to expert 3 alone, as far as weights go.
    forced = np.where(np.arange(5) == 3, 0.0, -1e9).astype(np.float32)
    tap = Tap((), [Patch("decoder/*/mlp/router", forced)], "decoder/*/mlp/", 0)
    expected = one_expert(module.stack.mlp, exact(params), 3, exact(X))
    np.testing.assert_allclose(module.apply({"params": params}, X, tap), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(out - expected).max() > 1e-2


@pytest.mark.parametrize("capacity", [None, 0.6])
def test_in_bfloat16_the_router_stays_float32(capacity):
    mlp = Mlp(F, experts=Experts(5, 2, capacity=capacity))
    module, params = build(mlp, dtype="bfloat16")
    tap, x = Tap(("router", "outer")), jnp.asarray(X, jnp.bfloat16)
    out = module.apply({"params": params}, x, tap)
    assert (out.dtype, tap.captured["router"].dtype) == (jnp.bfloat16, jnp.float32)
    whole = np.asarray(x, np.float64)
    np.testing.assert_allclose(tap.captured["router"], whole @ exact(params)["router"]["kernel"], rtol=1e-5, atol=1e-5)
    expected = by_hand(mlp, exact(params), whole)[0]
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.03 * np.abs(expected).max())


def test_inner_activations_are_dropped_while_training():
    module, params = build(Mlp(F, dropout=0.5, experts=Experts(3, 1)))
    run = lambda seed: module.apply({"params": params}, X, Tap(), True, rngs={"dropout": jax.random.key(seed)})  # noqa: E731
    assert np.abs(run(0) - run(1)).max() > 1e-2
    np.testing.assert_array_equal(run(0), run(0))


def test_each_expert_starts_as_one_alone_would():
    module, _ = build(Mlp(64, experts=Experts(4, 2)), param_dtype="float32")
    config = dataclasses.replace(module.config, init=dataclasses.replace(module.config.init, kind="fan_in", scale=1.0))
    params = MixtureOfExperts(config, module.stack).init(jax.random.key(0), X, Tap())["params"]
    for expert in range(4):
        assert np.std(params["up"]["kernel"][expert]) == pytest.approx(D**-0.5, rel=0.15)
        assert np.std(params["down"]["kernel"][expert]) == pytest.approx((64 * 2) ** -0.5, rel=0.15)
    assert np.abs(params["up"]["kernel"][0] - params["up"]["kernel"][1]).max() > 0.1
