from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Attention, Mlp, ModelConfig, Stack
from transformer.nn.attention import MultiHeadAttention, View
from transformer.nn.block import Block
from transformer.nn.mlp import FeedForward
from transformer.nn.norms import Normalize
from transformer.nn.tap import Tap

X = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
MEMORY = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
VIEW, CROSS = View(np.tri(4, dtype=bool)[None, None]), View(np.array([True, True, False]))


def build(crosses, **fields):
    stack = Stack(1, Attention(2), **{"mlp": Mlp(12), **fields})
    block = Block(ModelConfig(11, 8, decoder=stack), stack, crosses)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), X, MEMORY, VIEW, CROSS, Tap()))["params"]
    draw = np.random.default_rng(2)
    return block, jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.5, leaf.shape), jnp.float32), shapes)


def parts(block, params):
    """The halves as functions, in order: norm's name, function."""
    of = (block.config, block.stack)
    attend = lambda x: MultiHeadAttention(*of).apply({"params": params["attention"]}, x, VIEW, Tap(), None, 0, False)[0]  # noqa: E731
    cross = lambda x: MultiHeadAttention(*of).apply(  # noqa: E731
        {"params": params["cross_attention"]}, x, MEMORY, CROSS, Tap(), None, 0, False, method="cross"
    )[0]
    mlp = lambda x: FeedForward(*of).apply({"params": params["mlp"]}, x, Tap())  # noqa: E731
    halves = [("attention_norm", attend)]
    halves += [("cross_norm", cross)] if block.crosses else []
    return halves + ([("mlp_norm", mlp)] if block.stack.mlp else [])


@pytest.mark.parametrize("crosses", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mlp": None},
        {"norm_placement": "post"},
        {"norm_placement": "both"},
        {"norm_placement": "both", "mlp": None},
    ],
    ids=str,
)
def test_each_half_is_normalised_and_added_where_the_placement_says(crosses, fields):
    block, params = build(crosses, **fields)
    out, cache = block.apply({"params": params}, X, MEMORY, VIEW, CROSS, Tap())
    x = X
    for name, part in parts(block, params):
        norm = lambda x, name=name: Normalize(block.config, block.stack.norm).apply({"params": params[name]}, x)  # noqa: E731
        if fields.get("norm_placement") == "both":
            x = x + norm(part(norm(x)), name.replace("_norm", "_post_norm"))
        else:
            x = norm(x + part(x)) if fields.get("norm_placement") == "post" else x + part(norm(x))
    assert cache is None
    np.testing.assert_allclose(out, x, rtol=1e-5, atol=1e-5)


def test_halves_in_parallel_read_the_same_residual():
    block, params = build(False, parallel=True)
    assert set(params) == {"attention", "attention_norm", "mlp", "mlp_norm"}
    out, _ = block.apply({"params": params}, X, None, VIEW, CROSS, Tap())
    norm = lambda x, name: Normalize(block.config, block.stack.norm).apply({"params": params[name]}, x)  # noqa: E731
    added = [part(norm(X, name)) for name, part in parts(block, params)]
    assert len(added) == 2
    np.testing.assert_allclose(out, X + added[0] + added[1], rtol=1e-5, atol=1e-5)
    in_turn, _ = build(False)[0].apply({"params": params}, X, None, VIEW, CROSS, Tap())
    assert np.abs(out - in_turn).max() > 0.1


def test_parallel_halves_drop_what_they_add_apart():
    block, params = build(False, parallel=True, dropout=0.5)
    tap = Tap(("output", "mlp/outer"))
    rngs = {"dropout": jax.random.key(0)}
    out, _ = block.apply({"params": params}, X, None, VIEW, CROSS, tap, train=True, rngs=rngs)
    left, parts_added = out - X, (2 * tap.captured["output"], 2 * tap.captured["mlp/outer"])
    kept = [np.abs(left - sum(chosen, np.zeros_like(X))) < 1e-4 for chosen in
            ((), parts_added[:1], parts_added[1:], parts_added)]  # fmt: skip
    assert np.any(kept, axis=0).all() and all(0.1 < np.mean(one) < 0.4 for one in kept)


@pytest.mark.parametrize("crosses", [False, True])
def test_a_block_has_the_parameters_that_it_uses(crosses):
    _, params = build(crosses)
    cross = {"cross_attention", "cross_norm"} if crosses else set()
    assert set(params) == {"attention", "attention_norm", "mlp", "mlp_norm"} | cross
    assert set(build(crosses, mlp=None)[1]) == {"attention", "attention_norm"} | cross
    after = {f"{half}_post_norm" for half in ("attention", "mlp", *(["cross"] if crosses else []))}
    assert set(build(crosses, norm_placement="both")[1]) == set(params) | after


def test_what_a_half_adds_is_dropped_and_the_residual_is_not():
    block, params = build(False, mlp=None, dropout=0.5)
    apply = lambda **rest: block.apply({"params": params}, X, None, VIEW, CROSS, Tap(), **rest)[0]  # noqa: E731
    added, plain = apply(train=True, rngs={"dropout": jax.random.key(0)}) - X, apply() - X
    kept = np.abs(added) > 1e-6
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(added[kept], 2 * plain[kept], rtol=1e-3, atol=1e-5)
