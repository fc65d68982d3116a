from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import ModelConfig, Stack
from transformer.models.feed_forward import ACTIVATIONS as CHOICES
from transformer.models.feed_forward import Mlp
from transformer.nn.mlp import ACTIVATIONS, FeedForward
from transformer.nn.tap import Tap

REFERENCES = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


def test_every_choice_of_the_config_has_a_function_and_a_reference():
    assert set(CHOICES) == set(ACTIVATIONS) == set(REFERENCES)


@pytest.mark.parametrize("name", CHOICES)
def test_activations_are_their_formulas(name):
    x = np.linspace(-6, 6, 49)
    np.testing.assert_allclose(ACTIVATIONS[name](x.astype(np.float32)), REFERENCES[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_feed_forward_is_its_formula(gated, bias):
    stack = Stack(1, mlp=Mlp(12, "silu", gated, bias))
    module = FeedForward(ModelConfig(11, 8, decoder=stack), stack)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 3, 8)).astype(np.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, Tap()))["params"]
    assert set(shapes) == {"up", "down", *(["gate"] if gated else [])}
    assert all(set(part) == {"kernel", *(["bias"] if bias else [])} for part in shapes.values())
    params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), jnp.float32), shapes)

    apply = lambda name, x: x @ np.float64(params[name]["kernel"]) + np.float64(params[name].get("bias", 0))  # noqa: E731
    inner = REFERENCES["silu"](apply("gate", x)) * apply("up", x) if gated else REFERENCES["silu"](apply("up", x))
    np.testing.assert_allclose(module.apply({"params": params}, x, Tap()), apply("down", inner), rtol=1e-4, atol=1e-4)


def test_the_slope_of_gelu_is_that_of_jax_everywhere():
    x = jnp.linspace(-8, 8, 4001)
    ours, theirs = (
        jax.vmap(jax.grad(f))(x) for f in (ACTIVATIONS["gelu"], lambda x: jax.nn.gelu(x, approximate=False))
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    curve = jax.vmap(jax.grad(jax.grad(ACTIVATIONS["gelu"])))(x)
    np.testing.assert_allclose(curve[1:-1], (ours[2:] - ours[:-2]) / (x[2:] - x[:-2]), atol=1e-3)
