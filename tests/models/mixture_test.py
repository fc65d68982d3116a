"""Models with experts: both ways of serving tokens agree everywhere, while room is bounded, cached and shared out."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from transformer import models
from transformer.models.config import Attention, Init, ModelConfig, Stack
from transformer.models.feed_forward import Experts, Mlp
from transformer.models.transformer import Transformer
from transformer.nn import cache as caches
from transformer.nn.tap import Tap

B, T, S, V = 4, 6, 5, 13
VARIANTS = {
    "decoder": {},
    "prefix": {},
    "unrolled": {"unroll": 2},
    "recomputed": {"remat": "full"},
    "recomputed, unrolled": {"remat": "dots", "unroll": 2},
    "encoder": {},
    "both": {},
}


def build(variant="decoder", capacity=None):
    """A model and the arguments of its call; with 2.0 the experts have room for everybody, by the other way."""
    stack = Stack(2, Attention(2), Mlp(6, experts=Experts(4, 2, capacity=capacity)))
    roles = {"encoder": ("encoder",), "both": ("encoder", "decoder")}.get(variant, ("decoder",))
    init = Init(scale=0.4, embedding=1.0, output=1.0)
    model = Transformer(ModelConfig(V, 8, length=16, init=init, **dict.fromkeys(roles, stack), **VARIANTS[variant]))
    draw = np.random.default_rng(0)
    arguments = {"source": jnp.asarray(draw.integers(0, V, (B, S)))} if variant == "both" else {}
    arguments |= {"prefix": jnp.asarray(np.arange(T) < [[2], [0], [5], [3]])} if variant == "prefix" else {}
    return model, jnp.asarray(draw.integers(0, V, (B, T))), arguments


def losses(model, tokens, arguments):
    reader = np.random.default_rng(1).normal(size=(*tokens.shape, V))
    return lambda params: jnp.sum(model.apply({"params": params}, tokens, **arguments) * reader)


SHORT = ("decoder", "encoder", "recomputed, unrolled")


@pytest.mark.parametrize(
    "variant", [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_both_ways_give_the_same_logits_and_gradients_in_every_kind_of_model(variant, quick, lively):
    found = []
    for capacity in (None, 2.0):
        model, tokens, arguments = build(variant, capacity)
        params = lively(model, tokens, **arguments)
        found.append(quick(jax.value_and_grad(losses(model, tokens, arguments)))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *found)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found[0][1]):
        assert np.abs(leaf).max() > 1e-3, path


def test_with_a_cache_nothing_is_dropped(quick, lively):
    model, tokens, _ = build()
    tight = build(capacity=0.4)[0]
    params = lively(model, tokens)
    plain, dropping = (quick(lambda p, model=m: model.apply({"params": p}, tokens))(params) for m in (model, tight))
    assert np.abs(plain - dropping).max() > 1e-2
    cached = quick(lambda p: tight.apply({"params": p}, tokens, cache=caches.empty(tight.config, B, T))[0])(params)
    np.testing.assert_allclose(cached, plain, rtol=1e-4, atol=1e-4)


def test_routers_are_float32_in_a_bfloat16_model(lively, quick):
    model, tokens, _ = build()
    half = Transformer(dataclasses.replace(model.config, dtype="bfloat16"))
    params = lively(model, tokens)

    def run(model, params):
        tap = Tap(("decoder/0/mlp/router",))
        return model.apply({"params": params}, tokens, tap=tap), tap.taps()["decoder/0/mlp/router"]

    (logits, router), (_, whole) = (quick(lambda p, model=m: run(model, p))(params) for m in (half, model))
    assert router.dtype == jnp.float32 and np.isfinite(logits).all()
    np.testing.assert_allclose(router, whole, atol=0.05 * np.abs(whole).max())
    assert not np.array_equal(router, np.asarray(router, jnp.bfloat16).astype(np.float32))  # products were not rounded


def test_a_published_mixture_is_traced_without_allocating():
    model = Transformer(models.get("mixtral-8x7b"))
    tokens = jax.ShapeDtypeStruct((1, 4096), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    assert jax.eval_shape(lambda p, t: model.apply({"params": p}, t), params, tokens).shape == (1, 4096, 32_000)


def on_a_mesh():
    """In a process with four devices: rows over one axis, experts over the other."""
    mesh = jax.make_mesh((2, 2), ("rows", "experts"), axis_types=(AxisType.Auto,) * 2)

    def place(path, leaf):
        names = [part.key for part in path]
        of_experts = names[-2] in ("up", "gate", "down")
        spec = PartitionSpec(None, "experts") if of_experts else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    for capacity in (None, 0.6):
        model, tokens, _ = build(capacity=capacity)
        draw = np.random.default_rng(2)
        shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
        params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.5, leaf.shape), leaf.dtype), shapes)  # noqa: B023
        step = jax.jit(lambda p, t: jax.value_and_grad(losses(model, t, {}))(p))  # noqa: B023
        expected = step(params, tokens)
        sharded = jax.tree_util.tree_map_with_path(place, params)
        rows = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec("rows")))
        found = step(sharded, rows)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, expected)
        kernel = found[1]["decoder"]["blocks"]["mlp"]["up"]["kernel"]
        if capacity:  # what experts read and the gradients of their matrices stay apart
            assert kernel.sharding.spec[1] == "experts"


@pytest.mark.slow
def test_rows_and_experts_may_be_shared_among_devices(environment):
    root = str(Path(models.__file__).parents[2])
    program = "from tests.models.mixture_test import on_a_mesh; on_a_mesh()"
    call = {"env": environment(4), "cwd": root, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", program], **call)
    assert done.returncode == 0, done.stderr
