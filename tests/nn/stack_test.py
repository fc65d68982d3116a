"""The scan over layers is a plain loop over layers, whatever is unrolled or recomputed."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import REMATS, Attention, Mlp, ModelConfig, Norm, Position, Stack
from transformer.nn import positions as order
from transformer.nn.attention import View
from transformer.nn.block import Block
from transformer.nn.norms import Normalize
from transformer.nn.stack import Layers
from transformer.nn.tap import Tap
from transformer.ops import masks

# The same operations in another order of fusion: a few roundings of 6e-8 at values of order 1 to 10.
CLOSE = dict(rtol=2e-5, atol=2e-5)
X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
MEMORY = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)


def stacks():
    plain = Stack(4, Attention(2), Mlp(12), position=Position("rotary"))
    windows = dataclasses.replace(plain, attention=Attention(2, 1, windows=(0, 2)), position=Position("alibi"))
    post = dataclasses.replace(plain, depth=3, norm_placement="post", position=Position("none"), norm=Norm("layer"))
    both = dataclasses.replace(plain, depth=3, norm_placement="both")
    parallel = dataclasses.replace(plain, depth=3, parallel=True)
    return {
        "plain": (plain, False),
        "windows": (windows, False),
        "crossing": (post, True),
        "both": (both, True),
        "parallel": (parallel, False),
    }


def quick(function):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def layers_of(stack, crosses, **fields):
    config = ModelConfig(11, 8, decoder=stack, encoder=stack if crosses else None, **fields)
    return Layers(config, stack, "decoder", True, crosses)


def parameters(layers):
    """Lively ones: scales are not one and biases not zero."""
    draw = np.random.default_rng(2)
    shapes = jax.eval_shape(lambda: layers.init(jax.random.key(0), X, memory=memory_of(layers), tap=Tap()))["params"]
    fill = lambda leaf: jnp.asarray(draw.normal(0.3, 0.4, leaf.shape), jnp.float32)  # noqa: E731
    return jax.tree.map(fill, shapes)


def memory_of(layers):
    return MEMORY if layers.crosses else None


def scanned(layers):
    return lambda params, x: layers.apply({"params": params}, x, memory=memory_of(layers), tap=Tap())[0]


def looped(layers):
    """The same stack, block after block, each with its slice of the parameters."""
    config, stack, steps = layers.config, layers.stack, jnp.arange(X.shape[1])

    rotate = None
    if stack.position.kind == "rotary":
        rotate = order.rotation(config, stack, steps[None])

    @jax.jit  # one compilation for all layers
    def apply(params, x, mask, bias):
        block = Block(config, stack, layers.crosses)
        return block.apply({"params": params}, x, memory_of(layers), View(mask, bias, rotate), View(), Tap())[0]

    def run(params, x):
        bias = None
        if stack.position.kind == "alibi":
            bias = order.alibi_bias(stack.attention.heads, steps[None], steps[None])
        for layer in range(stack.depth):
            mask, windows = masks.causal(steps, steps), stack.attention.windows or (0,)
            if windows[layer % len(windows)]:
                mask = mask & masks.window(steps, steps, windows[layer % len(windows)])
            one = jax.tree.map(lambda leaf: leaf[layer], params["blocks"])  # noqa: B023
            x = apply(one, x, mask, bias)
        if stack.norm_placement != "post":
            x = Normalize(config, stack.norm).apply({"params": params["final_norm"]}, x)
        return x

    return run


def value_and_gradients(run):
    reader = np.random.default_rng(3).normal(size=X.shape)
    return jax.value_and_grad(lambda *args: jnp.sum(run(*args) * reader), argnums=(0, 1))


@pytest.fixture(scope="module")
def expected():
    found = {}
    for name, (stack, crosses) in stacks().items():
        layers = layers_of(stack, crosses)
        found[name] = value_and_gradients(looped(layers))(parameters(layers), X)
    return found


@pytest.mark.parametrize(
    ("name", "unroll"),
    [
        ("plain", 1),
        ("plain", 2),
        ("plain", 4),
        pytest.param("windows", 1, marks=pytest.mark.slow),
        ("windows", 4),
        pytest.param("crossing", 1, marks=pytest.mark.slow),
        ("both", 1),
        ("parallel", 3),
    ],
)
def test_scan_is_a_loop_in_value_and_gradient(expected, name, unroll):
    layers = layers_of(*stacks()[name], unroll=unroll)
    found = quick(value_and_gradients(scanned(layers)))(parameters(layers), X)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4), found, expected[name])
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("name", "unroll", "remat"),
    [*(("plain", 1, remat) for remat in REMATS if remat != "none"), ("windows", 4, "full"), ("crossing", 1, "dots")],
)
def test_recomputing_changes_no_number(expected, name, unroll, remat):
    layers = layers_of(*stacks()[name], unroll=unroll, remat=remat)
    found = quick(value_and_gradients(scanned(layers)))(parameters(layers), X)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4), found, expected[name])


def test_recomputing_saves_memory():
    def bytes_of(remat):
        layers = layers_of(*stacks()["plain"], remat=remat)
        x = jax.ShapeDtypeStruct((8, 64, 8), jnp.float32)
        shapes = jax.eval_shape(lambda: layers.init(jax.random.key(0), X, tap=Tap()))["params"]
        gradient = jax.grad(lambda params, x: jnp.sum(scanned(layers)(params, x)))
        return quick(gradient).lower(shapes, x).compile().memory_analysis().temp_size_in_bytes

    none, dots, full = bytes_of("none"), bytes_of("dots"), bytes_of("full")
    assert full < dots < none


@pytest.mark.parametrize(("unroll", "kept_apart"), [(1, False), (2, False), (4, True)])
def test_recomputation_is_kept_apart_from_the_original_without_a_loop(unroll, kept_apart):
    layers = layers_of(*stacks()["plain"], unroll=unroll, remat="full")
    text = str(jax.make_jaxpr(scanned(layers))(parameters(layers), X))
    assert (f"prevent_cse={kept_apart}" in text) and (f"prevent_cse={not kept_apart}" not in text)


def test_a_block_is_traced_once_whatever_the_depth():
    def lines(depth):
        layers = layers_of(dataclasses.replace(stacks()["plain"][0], depth=depth), False)
        shapes = jax.eval_shape(lambda: layers.init(jax.random.key(0), X, tap=Tap()))["params"]
        return str(jax.make_jaxpr(scanned(layers))(shapes, X)).count("\n")

    assert lines(2) == lines(64)


def test_positions_are_counted_from_zero_unless_given():
    stack = dataclasses.replace(stacks()["plain"][0], position=Position("learned"))
    layers = Layers(ModelConfig(11, 8, decoder=stack, length=16), stack, "decoder", True, False)
    params = parameters(layers)
    run = quick(lambda positions: layers.apply({"params": params}, X, positions=positions, tap=Tap())[0])
    plain = quick(scanned(layers))(params, X)
    count = np.tile(np.arange(X.shape[1]), (2, 1))
    np.testing.assert_allclose(run(count), plain, **CLOSE)
    assert np.abs(run(count + 1) - plain).max() > 1e-3
    assert np.isnan(run(count + 13)).any()  # beyond the table is undefined, never another position


def test_layers_start_from_keys_of_their_own():
    layers = layers_of(*stacks()["plain"])
    params = quick(lambda: layers.init(jax.random.key(0), X, tap=Tap()))()["params"]["blocks"]
    kernels = [params["attention"][name]["kernel"] for name in ("query", "key", "value")]
    kernels += [params["mlp"][name]["kernel"] for name in ("up", "gate")]
    rows = [np.ravel(kernel[layer]) for kernel in kernels for layer in range(4)]
    for i, row in enumerate(rows):
        assert 0.015 < np.std(row) < 0.025
        assert not any(np.array_equal(row[:32], other[:32]) for other in rows[:i])
    for name, kernel in (("attention", "output"), ("mlp", "down")):
        spread = np.std(params[name][kernel]["kernel"])
        assert 0.8 < spread / (0.02 * (2 * 4) ** -0.5) < 1.2  # GPT-2, section 2.3
